"""asyncpg, as an application uses it: its startup packet, prepared statements, binary values, transactions, COPY."""

import asyncio
import datetime
import decimal
import sys

import asyncpg


async def main():
    connection = await asyncpg.connect(sys.argv[1])
    assert connection.get_settings().client_encoding == "UTF8"
    await connection.execute("CREATE TABLE ticket (id int PRIMARY KEY, price numeric(12,2), note text, due date, raw bytea)")
    async with connection.transaction():
        await connection.executemany(
            "INSERT INTO ticket VALUES ($1, $2, $3, $4, $5)",
            [
                (number, decimal.Decimal("12.50"), f"note {number}", datetime.date(2026, 1, 1), b"\x00\xff")
                for number in range(10)
            ],
        )
    row = await connection.fetchrow("SELECT price, due, raw FROM ticket WHERE id = $1", 3)
    assert tuple(row) == (decimal.Decimal("12.50"), datetime.date(2026, 1, 1), b"\x00\xff")
    try:
        async with connection.transaction():
            await connection.execute("DELETE FROM ticket")
            await connection.execute("INSERT INTO ticket (id) VALUES ($1), ($1)", 1)
        raise SystemExit("a duplicate key was accepted")
    except asyncpg.UniqueViolationError:
        pass
    assert await connection.fetchval("SELECT count(*) FROM ticket") == 10
    async with connection.transaction():
        cursor = await connection.cursor("SELECT id FROM ticket ORDER BY id")
        assert [row["id"] for row in await cursor.fetch(4)] == [0, 1, 2, 3]
        assert [row["id"] for row in await cursor.fetch(20)] == [4, 5, 6, 7, 8, 9]
    copied = await connection.copy_records_to_table(
        "ticket", records=[(number, "copied") for number in range(100, 110)], columns=["id", "note"]
    )
    assert copied == "COPY 10", copied
    await connection.execute("SET statement_timeout = '30s'")
    assert await connection.fetchval("SHOW statement_timeout") == "30s"
    await connection.reset()
    await connection.close()


asyncio.run(main())
