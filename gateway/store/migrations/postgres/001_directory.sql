-- Who may call and with what, for all gateways.  PostgreSQL >= 14, READ COMMITTED.
CREATE TABLE tollkeeper_directory.head (               -- the last row of the log: its lock is what changes wait for
  single   boolean PRIMARY KEY DEFAULT true CHECK (single),
  revision bigint NOT NULL,
  hash     text NOT NULL
);
INSERT INTO tollkeeper_directory.head (revision, hash) VALUES (0, repeat('0', 64));

CREATE TABLE tollkeeper_directory.item (
  kind     text COLLATE "C" NOT NULL,
  id       text COLLATE "C" NOT NULL,
  revision bigint NOT NULL,
  body     text,                                       -- NULL: it is gone
  PRIMARY KEY (kind, id)
);
CREATE INDEX item_revision ON tollkeeper_directory.item (revision);

CREATE TABLE tollkeeper_directory.meta (name text PRIMARY KEY, value text NOT NULL);

CREATE TABLE tollkeeper_directory.audit (
  seq    bigint PRIMARY KEY,
  at     text NOT NULL,
  actor  text NOT NULL,
  action text NOT NULL,
  object text NOT NULL,
  before text,
  after  text,
  hash   text NOT NULL
);
CREATE FUNCTION tollkeeper_directory.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'rows stay'; END $$;
CREATE TRIGGER audit_is_not_altered BEFORE UPDATE OR DELETE ON tollkeeper_directory.audit
  FOR EACH ROW EXECUTE FUNCTION tollkeeper_directory.refuse();
CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON tollkeeper_directory.audit
  FOR EACH STATEMENT EXECUTE FUNCTION tollkeeper_directory.refuse();
