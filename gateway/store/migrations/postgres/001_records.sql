-- What is remembered of each request, for all gateways.  PostgreSQL >= 14.  Times: ns since the epoch, UTC.
CREATE TABLE tollkeeper_records.exchange (
  seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id          text COLLATE "C" NOT NULL UNIQUE,
  at          bigint NOT NULL,
  team        text COLLATE "C" NOT NULL,
  key         text COLLATE "C" NOT NULL,
  model       text COLLATE "C" NOT NULL,
  provider    text COLLATE "C",
  endpoint    text COLLATE "C" NOT NULL,
  status      integer NOT NULL,
  code        text COLLATE "C",
  stream      boolean NOT NULL,
  session     text COLLATE "C",
  "user"      text COLLATE "C",
  feature     text COLLATE "C",
  input       bigint NOT NULL,
  output      bigint NOT NULL,
  cost_nano   bigint,
  duration_us bigint NOT NULL,
  detail      bytea NOT NULL                            -- the rest, as gateway/store/rows.py packs it
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);

-- Each ends with the row's number, so (at, seq) is an order without ties: what the cursor relies on.
-- Partial indexes cost nothing for the requests that name no session or user and do not fail.
CREATE INDEX exchange_at ON tollkeeper_records.exchange (at, seq);
CREATE INDEX exchange_team ON tollkeeper_records.exchange (team, at, seq);
CREATE INDEX exchange_model ON tollkeeper_records.exchange (model, at, seq);
CREATE INDEX exchange_session ON tollkeeper_records.exchange (session, at, seq) WHERE session IS NOT NULL;
CREATE INDEX exchange_user ON tollkeeper_records.exchange ("user", at, seq) WHERE "user" IS NOT NULL;
CREATE INDEX exchange_code ON tollkeeper_records.exchange (code, at, seq) WHERE code IS NOT NULL;
CREATE INDEX exchange_failed ON tollkeeper_records.exchange (at, seq) WHERE (status >= 400 OR code IS NOT NULL);

CREATE TABLE tollkeeper_records.content (               -- UTF-8 as bytea: text cannot hold every character
  seq    bigint PRIMARY KEY REFERENCES tollkeeper_records.exchange (seq) ON DELETE CASCADE,
  input  bytea NOT NULL,
  output bytea NOT NULL
);
