-- The small world that every seed begins with.
CREATE TABLE account (shop int NOT NULL, id int NOT NULL, balance int NOT NULL, PRIMARY KEY (shop, id));
INSERT INTO account SELECT s, i, 10 FROM generate_series(1, 3) s, generate_series(1, 4) i;

-- What honest transactions did: no key, so that a doubled row shows.
CREATE TABLE ledger (shop int NOT NULL, transaction int NOT NULL, step int NOT NULL);

CREATE TABLE item (id serial PRIMARY KEY, note text NOT NULL);
CREATE TABLE plain (k int PRIMARY KEY, v int NOT NULL);
INSERT INTO plain SELECT k, k FROM generate_series(1, 8) k;
CREATE TABLE other (k int PRIMARY KEY, v text);
-- One for each client, so that not everybody waits for everybody.
CREATE TABLE notes_1 (k int PRIMARY KEY, v text);
CREATE TABLE notes_2 (k int PRIMARY KEY, v text);
CREATE TABLE notes_3 (k int PRIMARY KEY, v text);
CREATE TABLE notes_4 (k int PRIMARY KEY, v text);
CREATE TABLE notes_5 (k int PRIMARY KEY, v text);
CREATE SCHEMA side;
CREATE TABLE side.plain (k int PRIMARY KEY, v int NOT NULL);
INSERT INTO side.plain SELECT k, 100 FROM generate_series(1, 8) k;
CREATE SEQUENCE ticket;

CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1), (2), (3);
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE ranking (id serial PRIMARY KEY, place int NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO ranking (place) VALUES (1), (2), (3);

CREATE TABLE watched (id int PRIMARY KEY, v int NOT NULL);
INSERT INTO watched VALUES (1, 0), (2, 0);
CREATE TABLE audit (id serial PRIMARY KEY, said text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO audit (said) VALUES (TG_OP || NEW.id || NEW.v); RETURN NEW; END';
CREATE TRIGGER watch BEFORE INSERT OR UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION watch();

-- Changes data, and says that it does not.
CREATE FUNCTION draw() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''ticket'')';
CREATE FUNCTION touch(n int) RETURNS int LANGUAGE plpgsql VOLATILE AS
  'BEGIN UPDATE plain SET v = v + n WHERE k = 8; RETURN n; END';
CREATE FUNCTION steady(n int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN touch(n); END';
