"""psycopg 3, as an application uses it: prepared statements, binary parameters and results, transactions."""

import datetime
import decimal
import sys

import psycopg

with psycopg.connect(sys.argv[1]) as connection:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE invoice (id int PRIMARY KEY, total numeric(12,2), note text, due date, raw bytea)"
        )
    connection.commit()

    with connection.cursor(binary=True) as cursor:
        for number in range(10):
            cursor.execute(
                "INSERT INTO invoice VALUES (%b, %b, %b, %b, %b)",
                (number, decimal.Decimal("12.50"), f"note {number}", datetime.date(2026, 1, 1), b"\x00\xff"),
                prepare=True,
            )
        cursor.execute("SELECT id, total, due, raw FROM invoice WHERE id = %b", (3,), prepare=True)
        assert cursor.fetchone() == (3, decimal.Decimal("12.50"), datetime.date(2026, 1, 1), b"\x00\xff")
    connection.commit()

    try:
        with connection.transaction():
            connection.execute("DELETE FROM invoice")
            connection.execute("INSERT INTO invoice (id) VALUES (1), (1)")
        raise SystemExit("a duplicate key was accepted")
    except psycopg.errors.UniqueViolation:
        pass
    assert connection.execute("SELECT count(*), sum(total) FROM invoice").fetchone() == (10, decimal.Decimal("125.00"))

    with connection.transaction():
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE invoice SET total = %s WHERE id = %s", [(id, id) for id in range(10)])
    with connection.cursor() as cursor:
        with cursor.copy("COPY invoice (id, note) FROM STDIN") as copy:
            for number in range(100, 110):
                copy.write_row((number, "copied"))
        with cursor.copy("COPY (SELECT id FROM invoice WHERE note = 'copied' ORDER BY id) TO STDOUT") as copy:
            assert [row[0] for row in copy.rows()] == [str(number) for number in range(100, 110)]
    connection.commit()
    with connection.pipeline():
        first = connection.execute("SELECT sum(total) FROM invoice")
        second = connection.execute("SELECT count(*) FROM invoice")
    assert first.fetchone() == (decimal.Decimal("45.00"),)
    assert second.fetchone() == (20,)
