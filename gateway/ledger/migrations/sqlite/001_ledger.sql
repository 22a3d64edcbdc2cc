-- Money of one node.  Amounts: integer nano-USD.  Times: ns since the epoch.  Nothing here is a float.
CREATE TABLE clock(id INTEGER PRIMARY KEY CHECK (id = 1), seen INTEGER NOT NULL) STRICT;
INSERT INTO clock VALUES (1, 0);

CREATE TABLE budget_window(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    budget TEXT NOT NULL,
    starts INTEGER NOT NULL,                            -- 0 where the period is "total"
    ends INTEGER CHECK (ends > starts),                 -- NULL where it is "total"
    limit_nano INTEGER NOT NULL CHECK (limit_nano >= 0),
    ceiling INTEGER NOT NULL,                           -- the limit; above it after the limit was lowered, or where soft
    spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
    reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    overrun INTEGER NOT NULL DEFAULT 0 CHECK (overrun >= 0),
    seq INTEGER NOT NULL DEFAULT 0,
    frozen INTEGER NOT NULL DEFAULT 0,
    hard INTEGER NOT NULL,
    UNIQUE (budget, starts),
    CONSTRAINT never_over CHECK (reserved <= ceiling - spent)
) STRICT;

CREATE TABLE reservation(
    id TEXT PRIMARY KEY,
    granted INTEGER NOT NULL CHECK (granted >= 0),      -- what reserve answered
    rest INTEGER NOT NULL CHECK (rest >= 0),            -- what it still holds, in each of its windows
    state TEXT NOT NULL CHECK (state IN ('held', 'closed', 'expired')),
    owner TEXT NOT NULL,
    since INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    note TEXT,
    CHECK (state = 'held' OR rest = 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX reservation_due ON reservation(expires) WHERE state = 'held';
CREATE INDEX reservation_owner ON reservation(owner, state) WHERE state <> 'closed';

CREATE TABLE share(                                     -- a reservation in one of its windows
    reservation TEXT NOT NULL REFERENCES reservation(id),
    window INTEGER NOT NULL REFERENCES budget_window(id),
    prime INTEGER NOT NULL,                             -- 1 in exactly one window: its entries answer spend questions
    charged INTEGER NOT NULL DEFAULT 0 CHECK (charged >= 0),  -- when it expired, and claimed by no posting yet
    PRIMARY KEY (reservation, window)
) STRICT, WITHOUT ROWID;
CREATE INDEX share_window ON share(window);

CREATE TABLE entry(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    hold TEXT NOT NULL,                                 -- the reservation's own id where its rest was charged or given back
    reservation TEXT NOT NULL,
    window INTEGER NOT NULL REFERENCES budget_window(id),
    kind TEXT NOT NULL CHECK (kind IN ('settle', 'expire', 'correct', 'overrun')),
    amount INTEGER NOT NULL CHECK (amount >= 0 OR kind = 'correct'),
    moved INTEGER NOT NULL DEFAULT 0,                   -- of a correction: how much it took over from its reservation's expiry
    prime INTEGER NOT NULL,
    team TEXT, "key" TEXT, "user" TEXT, feature TEXT, model TEXT, provider TEXT,
    note TEXT,
    UNIQUE (hold, window, kind)
) STRICT;
CREATE INDEX entry_window ON entry(window, amount);
CREATE INDEX entry_spend ON entry(at) WHERE prime;
CREATE INDEX entry_moved ON entry(at) WHERE moved <> 0;

CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry BEGIN
    SELECT RAISE(ABORT, 'entries are never changed: post a correction');
END;
CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry BEGIN
    SELECT RAISE(ABORT, 'entries are never deleted');
END;
CREATE TRIGGER entry_is_never_replaced BEFORE INSERT ON entry
WHEN EXISTS (SELECT 1 FROM entry e WHERE e.id = NEW.id OR (e.hold = NEW.hold AND e.window = NEW.window AND e.kind = NEW.kind))
BEGIN
    SELECT RAISE(ABORT, 'entries are never replaced');  -- INSERT OR REPLACE deletes without the trigger above
END;
