"""Named cursors WITH HOLD as psycopg and Django's QuerySet.iterator() make them: outside of a transaction, and beyond one."""

import sys

import psycopg

ROWS = 20_000

with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("CREATE TABLE reading (id int PRIMARY KEY, note text)")
    connection.execute("INSERT INTO reading SELECT g, repeat('n', 200) || g FROM generate_series(1, %s) g", (ROWS,))

# As Django does in autocommit mode.
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    with connection.cursor("_django_curs_1_sync_1", scrollable=False, withhold=True) as cursor:
        cursor.itersize = 2000
        cursor.execute("SELECT id, note FROM reading WHERE id > %s ORDER BY id", (10,))
        seen = 0
        for number, (row, note) in enumerate(cursor):
            assert row == number + 11 and note.endswith(f"n{row}"), (row, note)
            seen += 1
            if row % 5000 == 0:
                connection.execute("UPDATE reading SET note = 'changed' WHERE id > %s", (row,))
        assert seen == ROWS - 10, seen
    with connection.cursor("binary", withhold=True) as cursor:
        cursor.execute("SELECT id, id % 2 = 0 AS even FROM reading ORDER BY id", binary=True)
        assert cursor.fetchmany(2) == [(1, False), (2, True)]
        assert [column.name for column in cursor.description] == ["id", "even"]

# Beyond a transaction, up and down.
with psycopg.connect(sys.argv[1]) as connection:
    cursor = connection.cursor("up and down", scrollable=True, withhold=True)
    cursor.execute("SELECT id FROM reading ORDER BY id")
    assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
    connection.commit()
    connection.execute("DELETE FROM reading")
    connection.commit()
    assert cursor.fetchone() == (4,)
    cursor.scroll(500, mode="absolute")
    assert cursor.fetchone() == (501,)
    cursor.scroll(-2)
    assert cursor.fetchone() == (500,)
    connection.rollback()
    assert cursor.fetchone() == (501,), "ROLLBACK does not undo FETCH"
    cursor.close()
    try:
        connection.execute('FETCH 1 FROM "up and down"')
    except psycopg.errors.InvalidCursorName as error:
        assert str(error).splitlines()[0] == 'cursor "up and down" does not exist', error
    else:
        raise AssertionError("a closed cursor is still there")
