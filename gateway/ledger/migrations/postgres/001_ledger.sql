-- Money shared by all gateways.  PostgreSQL >= 14, READ COMMITTED.  Amounts: bigint nano-USD; nothing here is a float.
-- Locks are always taken in this order: reservations by id, then windows by id.  So there is no deadlock.
CREATE TABLE tollkeeper.budget_window (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  budget      text COLLATE "C" NOT NULL,
  starts      timestamptz NOT NULL,                   -- -infinity … infinity where the period is "total"
  ends        timestamptz NOT NULL CHECK (ends > starts),
  limit_nano  bigint NOT NULL CHECK (limit_nano >= 0),
  ceiling     bigint NOT NULL,                        -- the limit; above it after the limit was lowered, or where soft
  spent       bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
  reserved    bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  overrun     bigint NOT NULL DEFAULT 0 CHECK (overrun >= 0),
  seq         bigint NOT NULL DEFAULT 0,
  frozen      boolean NOT NULL DEFAULT false,
  hard        boolean NOT NULL,
  UNIQUE (budget, starts),
  CONSTRAINT never_over CHECK (reserved <= ceiling - spent)
) WITH (fillfactor = 50);                             -- room for HOT updates: these rows change with every request

CREATE TABLE tollkeeper.reservation (
  id       text COLLATE "C" PRIMARY KEY,
  granted  bigint NOT NULL CHECK (granted >= 0),      -- what reserve answered
  rest     bigint NOT NULL CHECK (rest >= 0),         -- what it still holds, in each of its windows
  state    text NOT NULL CHECK (state IN ('held', 'closed', 'expired')),
  owner    text NOT NULL,
  since    timestamptz NOT NULL,
  expires  timestamptz NOT NULL,
  note     jsonb,
  CHECK (state = 'held' OR rest = 0)
);
CREATE INDEX reservation_due ON tollkeeper.reservation (expires) WHERE state = 'held';
CREATE INDEX reservation_owner ON tollkeeper.reservation (owner, state) WHERE state <> 'closed';

CREATE TABLE tollkeeper.share (                       -- a reservation in one of its windows
  reservation text COLLATE "C" NOT NULL REFERENCES tollkeeper.reservation (id),
  window_id   bigint NOT NULL REFERENCES tollkeeper.budget_window (id),
  prime       boolean NOT NULL,                       -- in exactly one window: its entries answer spend questions
  charged     bigint NOT NULL DEFAULT 0 CHECK (charged >= 0),  -- when it expired, and claimed by no posting yet
  PRIMARY KEY (reservation, window_id)
);
CREATE INDEX share_window ON tollkeeper.share (window_id);

CREATE TABLE tollkeeper.entry (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at          timestamptz NOT NULL,
  hold        text COLLATE "C" NOT NULL,              -- the reservation's own id where its rest was charged or given back
  reservation text COLLATE "C" NOT NULL,
  window_id   bigint NOT NULL REFERENCES tollkeeper.budget_window (id),
  kind        text NOT NULL CHECK (kind IN ('settle', 'expire', 'correct', 'overrun')),
  amount      bigint NOT NULL CHECK (amount >= 0 OR kind = 'correct'),
  moved       bigint NOT NULL DEFAULT 0,              -- of a correction: how much it took over from its reservation's expiry
  prime       boolean NOT NULL,
  note        jsonb,                                  -- in the prime window's entry only
  UNIQUE (hold, window_id, kind)
);
CREATE INDEX entry_window ON tollkeeper.entry (window_id) INCLUDE (amount);
CREATE INDEX entry_spend ON tollkeeper.entry (at) WHERE prime;
CREATE INDEX entry_moved ON tollkeeper.entry (at) WHERE moved <> 0;

CREATE TABLE tollkeeper.step (                        -- so that a step whose answer was lost can be asked for again
  token       uuid PRIMARY KEY,
  reservation text COLLATE "C" NOT NULL,
  amount      bigint NOT NULL
);
CREATE INDEX step_reservation ON tollkeeper.step (reservation);

CREATE FUNCTION tollkeeper.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'entries are never changed or deleted: post a correction'; END $$;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON tollkeeper.entry
  FOR EACH ROW EXECUTE FUNCTION tollkeeper.refuse();
CREATE TRIGGER entry_is_never_emptied BEFORE TRUNCATE ON tollkeeper.entry
  FOR EACH STATEMENT EXECUTE FUNCTION tollkeeper.refuse();

-- The one clock.  Not now(): that stands still while a transaction waits for a lock.
CREATE FUNCTION tollkeeper.gw_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT clock_timestamp()';

-- What was answered is on the disk, also where the server is set to answer before that.  Local to the transaction.
CREATE FUNCTION tollkeeper.durable() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN PERFORM set_config('synchronous_commit', 'on', true); END IF;
END $$;

CREATE FUNCTION tollkeeper.ns(p_at timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN isfinite(p_at) THEN (extract(epoch FROM p_at) * 1000000)::bigint * 1000 END $$;

-- The first midnight of a local date.
CREATE FUNCTION tollkeeper.midnight(p_day date, p_zone text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE v_at timestamptz := p_day::timestamp AT TIME ZONE p_zone; v_back interval;
BEGIN
  FOREACH v_back IN ARRAY ARRAY['2 hours', '1 hour', '30 minutes']::interval[] LOOP  -- where it comes twice
    IF (v_at - v_back) AT TIME ZONE p_zone = p_day::timestamp THEN RETURN v_at - v_back; END IF;
  END LOOP;
  RETURN v_at;
END $$;

CREATE FUNCTION tollkeeper.period_of(p_period text, p_zone text, p_at timestamptz, OUT starts timestamptz, OUT ends timestamptz)
LANGUAGE plpgsql STABLE AS $$
DECLARE v_first date; v_next date;
BEGIN
  IF p_period = 'total' THEN starts := '-infinity'; ends := 'infinity'; RETURN; END IF;
  v_first := date_trunc(p_period, p_at AT TIME ZONE p_zone)::date;
  LOOP  -- more than once only where a zone steps over its own midnight
    v_next := (v_first + CASE p_period WHEN 'day' THEN interval '1 day' WHEN 'week' THEN interval '7 days'
                                       ELSE interval '1 month' END)::date;
    starts := tollkeeper.midnight(v_first, p_zone);
    ends := tollkeeper.midnight(v_next, p_zone);
    IF starts > p_at THEN v_first := date_trunc(p_period, v_first::timestamp - interval '1 day')::date;
    ELSIF ends <= p_at THEN v_first := v_next;
    ELSE RETURN; END IF;
  END LOOP;
END $$;

-- The window of a budget that is running.
CREATE FUNCTION tollkeeper.running(p_budget text, p_at timestamptz) RETURNS SETOF tollkeeper.budget_window LANGUAGE sql STABLE AS $$
  SELECT * FROM tollkeeper.budget_window WHERE budget = p_budget AND starts <= p_at AND p_at < ends
   ORDER BY starts DESC LIMIT 1 $$;

CREATE FUNCTION tollkeeper.open_window(p_budget text, p_period text, p_zone text, p_limit bigint, p_hard boolean)
RETURNS bigint LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE v_at timestamptz; v_id bigint; v_period record;
BEGIN
  PERFORM tollkeeper.durable();
  PERFORM pg_advisory_xact_lock(hashtextextended('tollkeeper ' || p_budget, 0));  -- gateways may differ in the zone they know
  v_at := tollkeeper.gw_now();
  SELECT id INTO v_id FROM tollkeeper.running(p_budget, v_at);
  IF v_id IS NULL THEN
    SELECT * INTO v_period FROM tollkeeper.period_of(p_period, p_zone, v_at);
    SELECT greatest(v_period.starts, max(ends)) INTO v_period.starts         -- it may reach back into an older one
      FROM tollkeeper.budget_window WHERE budget = p_budget;                 -- where the zone changed
    INSERT INTO tollkeeper.budget_window (budget, starts, ends, limit_nano, ceiling, hard)
      VALUES (p_budget, v_period.starts, v_period.ends, p_limit, CASE WHEN p_hard THEN p_limit ELSE 9223372036854775807 END, p_hard)
      RETURNING id INTO v_id;
  END IF;
  UPDATE tollkeeper.budget_window
     SET limit_nano = p_limit, hard = p_hard, seq = seq + 1,
         ceiling = CASE WHEN p_hard THEN greatest(p_limit, spent + reserved) ELSE 9223372036854775807 END
   WHERE id = v_id AND (limit_nano, hard) IS DISTINCT FROM (p_limit, p_hard);
  RETURN v_id;
END $$;

-- Locks windows and says what may be reserved in all of them.  reason NULL: amount is granted.
CREATE FUNCTION tollkeeper.admit(p_windows bigint[], p_amount bigint, p_minimum bigint, OUT reason text, OUT window_id bigint,
                                 OUT retry float8, OUT available bigint, OUT amount bigint, OUT left_over bigint)
LANGUAGE plpgsql AS $$
DECLARE v_least numeric := coalesce(p_minimum, p_amount); v_at timestamptz; v record;
BEGIN
  PERFORM 1 FROM tollkeeper.budget_window w WHERE w.id = ANY (p_windows) ORDER BY w.id FOR UPDATE;
  v_at := tollkeeper.gw_now();
  SELECT count(*) AS found,
         min(w.id) FILTER (WHERE w.frozen) AS frozen,
         min(w.id) FILTER (WHERE w.ends <= v_at) AS over,
         min(w.id) FILTER (WHERE w.hard AND v_least + w.spent + w.overrun > w.limit_nano) AS exhausted,
         max(w.ends) FILTER (WHERE w.hard AND v_least + w.spent + w.overrun > w.limit_nano) AS until,
         min(w.id) FILTER (WHERE w.hard AND v_least + w.spent + w.overrun + w.reserved > w.limit_nano) AS contended,
         min(CASE WHEN w.hard THEN greatest(w.limit_nano::numeric - w.spent - w.overrun - w.reserved, 0)
                  ELSE 9200000000000000000 END)::bigint AS available,
         bool_or(w.hard) AS hard
    INTO v FROM tollkeeper.budget_window w WHERE w.id = ANY (p_windows);  -- a fresh look: the rows are ours now
  available := v.available;
  IF v.found <> cardinality(p_windows) THEN                               -- never "missing = unlimited"
    reason := 'unknown_window'; available := 0;
    SELECT min(x) INTO window_id FROM unnest(p_windows) x
     WHERE NOT EXISTS (SELECT 1 FROM tollkeeper.budget_window w WHERE w.id = x);
  ELSIF v.frozen IS NOT NULL THEN reason := 'frozen'; window_id := v.frozen; available := 0;
  ELSIF v.over IS NOT NULL THEN reason := 'window_over'; window_id := v.over; retry := 0; available := 0;
  ELSIF v.exhausted IS NOT NULL THEN reason := 'exhausted'; window_id := v.exhausted;
    retry := CASE WHEN isfinite(v.until) THEN extract(epoch FROM v.until - v_at) END;
  ELSIF v.contended IS NOT NULL THEN reason := 'contended'; window_id := v.contended; retry := 1;
  ELSE
    amount := CASE WHEN p_minimum IS NULL THEN p_amount ELSE least(p_amount, v.available) END;
    left_over := CASE WHEN v.hard THEN v.available - amount END;
  END IF;
END $$;

CREATE FUNCTION tollkeeper.reserve(p_id text, p_windows bigint[], p_amount bigint, p_minimum bigint, p_owner text, p_ttl float8,
                                   p_note jsonb, OUT reason text, OUT window_id bigint, OUT retry float8, OUT available bigint,
                                   OUT amount bigint, OUT left_over bigint, OUT replay boolean)
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE r tollkeeper.reservation; v_at timestamptz; v record; v_prime bigint;
BEGIN
  replay := false;
  PERFORM tollkeeper.durable();
  SELECT * INTO v FROM tollkeeper.admit(p_windows, p_amount, p_minimum);  -- the locks first: who asks twice at once, waits
  SELECT * INTO r FROM tollkeeper.reservation WHERE id = p_id;
  IF FOUND THEN                                                          -- a COMMIT whose answer was lost, asked again
    IF r.owner = '' THEN reason := 'lost'; available := 0; RETURN; END IF;  -- released before it came
    IF (SELECT array_agg(s.window_id ORDER BY s.window_id) FROM tollkeeper.share s WHERE s.reservation = p_id)
       IS DISTINCT FROM (SELECT array_agg(x ORDER BY x) FROM unnest(p_windows) x) THEN
      RAISE EXCEPTION 'reservation % was made for other windows: an id names one reservation only', p_id;
    END IF;
    IF r.state = 'held' THEN replay := true; amount := r.granted; ELSE reason := 'lost'; available := 0; END IF;
    RETURN;
  END IF;
  reason := v.reason; window_id := v.window_id; retry := v.retry; available := v.available;
  amount := v.amount; left_over := v.left_over;
  IF reason IS NOT NULL THEN RETURN; END IF;
  UPDATE tollkeeper.budget_window SET reserved = reserved + v.amount, seq = seq + 1 WHERE id = ANY (p_windows);
  SELECT w.id INTO v_prime FROM tollkeeper.budget_window w WHERE w.id = ANY (p_windows) ORDER BY w.hard DESC, w.id LIMIT 1;
  v_at := tollkeeper.gw_now();
  INSERT INTO tollkeeper.reservation
    VALUES (p_id, v.amount, v.amount, 'held', p_owner, v_at, v_at + make_interval(secs => p_ttl), p_note);
  INSERT INTO tollkeeper.share (reservation, window_id, prime) SELECT p_id, x, x = v_prime FROM unnest(p_windows) x;
END $$;

CREATE FUNCTION tollkeeper.grow(p_id text, p_amount bigint, p_minimum bigint, p_token uuid, OUT reason text, OUT window_id bigint,
                                OUT retry float8, OUT available bigint, OUT amount bigint, OUT left_over bigint, OUT replay boolean)
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE r tollkeeper.reservation; v_windows bigint[]; v record;
BEGIN
  replay := false; available := 0;
  PERFORM tollkeeper.durable();
  SELECT * INTO r FROM tollkeeper.reservation WHERE id = p_id FOR UPDATE;
  IF NOT FOUND OR r.state <> 'held' THEN reason := 'lost'; RETURN; END IF;
  SELECT s.amount INTO amount FROM tollkeeper.step s WHERE s.token = p_token;
  IF FOUND THEN replay := true; RETURN; END IF;
  SELECT array_agg(s.window_id) INTO v_windows FROM tollkeeper.share s WHERE s.reservation = p_id;
  IF cardinality(v_windows) <> 1 THEN
    RAISE EXCEPTION 'reservation % lies in % windows: only a lease of one window grows', p_id, cardinality(v_windows)
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  SELECT * INTO v FROM tollkeeper.admit(v_windows, p_amount, p_minimum);
  reason := v.reason; window_id := v.window_id; retry := v.retry; available := v.available;
  amount := v.amount; left_over := v.left_over;
  IF reason IS NOT NULL THEN RETURN; END IF;
  UPDATE tollkeeper.budget_window SET reserved = reserved + v.amount, seq = seq + 1 WHERE id = v_windows[1];
  UPDATE tollkeeper.reservation SET rest = rest + v.amount WHERE id = p_id;
  INSERT INTO tollkeeper.step VALUES (p_token, p_id, v.amount);
END $$;

-- What a posting does to each window of its reservation; the caller has locked both.  p_charged: NULL: it is in time;
-- else window -> what this hold was charged when it expired.  What is neither covered by what is still reserved nor was
-- charged before, but lies within the hold, is charged as far as the ceiling allows; all else is overrun.
CREATE FUNCTION tollkeeper.charge(p_hold text, p_reservation text, p_amount bigint, p_held bigint, p_kind text, p_note jsonb,
                                  p_covered bigint, p_charged jsonb, p_counted boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE s record; v_at timestamptz := tollkeeper.gw_now(); v_own bigint := least(p_amount, p_held); v_moved bigint;
        v_claimed bigint; v_base bigint; v_extra bigint; v_over bigint; v_any boolean := false;
BEGIN
  FOR s IN SELECT x.window_id, x.prime AND p_counted AS prime, x.charged, w.ceiling, w.spent, w.reserved
             FROM tollkeeper.share x JOIN tollkeeper.budget_window w ON w.id = x.window_id
            WHERE x.reservation = p_reservation ORDER BY x.window_id LOOP
    v_moved := 0;
    IF p_charged = '{}' THEN  -- not the hold but its reservation expired: claim from that
      v_moved := least(p_held, s.charged);
      UPDATE tollkeeper.share SET charged = charged - v_moved WHERE reservation = p_reservation AND window_id = s.window_id;
    END IF;
    v_claimed := greatest(v_moved, coalesce((p_charged ->> s.window_id::text)::bigint, 0));
    v_base := least(v_own, greatest(p_covered, v_claimed));
    v_extra := least(v_own - v_base,
                     greatest(s.ceiling - (s.spent + v_base - v_claimed) - (s.reserved - p_covered), 0));
    v_over := p_amount - v_base - v_extra;
    UPDATE tollkeeper.budget_window
       SET reserved = reserved - p_covered, spent = spent + (v_base - v_claimed + v_extra), overrun = overrun + v_over, seq = seq + 1
     WHERE id = s.window_id;
    INSERT INTO tollkeeper.entry (at, hold, reservation, window_id, kind, amount, moved, prime, note)
      VALUES (v_at, p_hold, p_reservation, s.window_id, CASE WHEN p_charged IS NULL THEN p_kind ELSE 'correct' END,
              v_base - v_claimed + v_extra, v_moved, s.prime, CASE WHEN s.prime THEN p_note END);
    IF v_over > 0 THEN
      v_any := true;
      INSERT INTO tollkeeper.entry (at, hold, reservation, window_id, kind, amount, prime, note)
        VALUES (v_at, p_hold, p_reservation, s.window_id, 'overrun', v_over, s.prime, CASE WHEN s.prime THEN p_note END);
    END IF;
  END LOOP;
  RETURN v_any;
END $$;

-- Gives back part of what is held, or (NULL) all; of an expired reservation what was charged and no posting claimed.
CREATE FUNCTION tollkeeper.give_back(p_id text, p_amount bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE r tollkeeper.reservation; v_given bigint;
BEGIN
  SELECT * INTO r FROM tollkeeper.reservation WHERE id = p_id;
  IF r.state = 'closed' OR (r.state = 'expired' AND p_amount IS NOT NULL) THEN RETURN 'already'; END IF;
  IF r.state = 'expired' THEN
    UPDATE tollkeeper.budget_window w SET spent = w.spent - s.charged, seq = w.seq + 1
      FROM tollkeeper.share s WHERE s.reservation = p_id AND s.window_id = w.id AND s.charged > 0;
    INSERT INTO tollkeeper.entry (at, hold, reservation, window_id, kind, amount, prime, note)
      SELECT tollkeeper.gw_now(), p_id, p_id, s.window_id, 'correct', -s.charged, s.prime, CASE WHEN s.prime THEN r.note END
        FROM tollkeeper.share s WHERE s.reservation = p_id AND s.charged > 0;
    UPDATE tollkeeper.share SET charged = 0 WHERE reservation = p_id;
    UPDATE tollkeeper.reservation SET state = 'closed' WHERE id = p_id;
  ELSE
    v_given := least(coalesce(p_amount, r.rest), r.rest);
    UPDATE tollkeeper.budget_window SET reserved = reserved - v_given, seq = seq + 1
     WHERE id IN (SELECT window_id FROM tollkeeper.share WHERE reservation = p_id);
    UPDATE tollkeeper.reservation SET rest = rest - v_given, state = CASE WHEN rest > v_given THEN 'held' ELSE 'closed' END
     WHERE id = p_id;
    IF r.rest > v_given THEN RETURN 'released'; END IF;
  END IF;
  DELETE FROM tollkeeper.step WHERE reservation = p_id;
  RETURN 'closed';
END $$;

CREATE FUNCTION tollkeeper.post_one(p_hold text, p_reservation text, p_amount bigint, p_held bigint, p_kind text, p_note jsonb,
                                    p_last boolean, p_counted boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE r tollkeeper.reservation; v_charged jsonb; v_late boolean; v_covered bigint := 0; v_over boolean := false;
BEGIN
  SELECT * INTO STRICT r FROM tollkeeper.reservation WHERE id = p_reservation;
  IF EXISTS (SELECT 1 FROM tollkeeper.entry WHERE hold = p_hold AND (kind <> 'expire' OR p_kind = 'expire')) THEN
    RETURN 'already';
  END IF;
  SELECT coalesce(jsonb_object_agg(window_id, amount), '{}') INTO v_charged FROM tollkeeper.entry WHERE hold = p_hold;
  v_late := r.state <> 'held' OR v_charged <> '{}';
  IF v_late AND p_kind = 'expire' THEN RETURN 'already'; END IF;
  IF v_late AND p_amount IS NULL AND v_charged = '{}'
     AND NOT EXISTS (SELECT 1 FROM tollkeeper.share WHERE reservation = p_reservation AND charged > 0) THEN
    RETURN 'already';                               -- nothing was billed and nothing is charged for it
  END IF;
  IF v_late THEN
    v_over := tollkeeper.charge(p_hold, p_reservation, coalesce(p_amount, 0), p_held, p_kind, p_note, 0, v_charged, p_counted);
  ELSIF p_amount IS NOT NULL THEN
    IF p_kind = 'expire' THEN p_amount := least(p_amount, r.rest); END IF;  -- what is in doubt is never an overrun
    v_covered := least(p_amount, p_held, r.rest);
    UPDATE tollkeeper.reservation SET rest = rest - v_covered WHERE id = p_reservation;
    v_over := tollkeeper.charge(p_hold, p_reservation, p_amount, p_held, p_kind, p_note, v_covered, NULL, p_counted);
  END IF;
  IF p_last THEN PERFORM tollkeeper.give_back(p_reservation, NULL); END IF;
  RETURN CASE WHEN v_over THEN 'overrun' WHEN v_late THEN 'corrected' ELSE 'ok' END;
END $$;

-- Locks reservations and all of their windows, in the one order.  Those that it tells are locked; one that is committed
-- while this waits for another's lock is not among them, and unknown still.
CREATE FUNCTION tollkeeper.lock_all(p_reservations text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE v_locked text[];
BEGIN
  v_locked := ARRAY(SELECT id FROM tollkeeper.reservation WHERE id = ANY (p_reservations) ORDER BY id FOR UPDATE);
  PERFORM 1 FROM tollkeeper.budget_window
    WHERE id IN (SELECT window_id FROM tollkeeper.share WHERE reservation = ANY (v_locked)) ORDER BY id FOR UPDATE;
  RETURN v_locked;
END $$;

CREATE FUNCTION tollkeeper.post(p_postings jsonb) RETURNS text[] LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE p jsonb; v_locked text[]; v_answers text[] := '{}';
BEGIN
  PERFORM tollkeeper.durable();
  v_locked := tollkeeper.lock_all(ARRAY(SELECT x ->> 'reservation' FROM jsonb_array_elements(p_postings) x));
  FOR p IN SELECT * FROM jsonb_array_elements(p_postings) LOOP
    IF p ->> 'reservation' <> ALL (v_locked) THEN v_answers := v_answers || 'unknown'::text; CONTINUE; END IF;
    v_answers := v_answers || tollkeeper.post_one(p ->> 'hold', p ->> 'reservation', (p ->> 'amount')::bigint,
      (p ->> 'held')::bigint, p ->> 'kind', nullif(p -> 'note', 'null'), (p ->> 'last')::boolean, (p ->> 'counted')::boolean);
  END LOOP;
  RETURN v_answers;
END $$;

CREATE FUNCTION tollkeeper.release(p_id text, p_amount bigint, p_token uuid) RETURNS text LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  PERFORM tollkeeper.durable();
  IF tollkeeper.lock_all(ARRAY[p_id]) = '{}' THEN
    IF p_amount IS NOT NULL THEN RETURN 'unknown'; END IF;
    -- It never will be: what a process asked for before it was killed may still be on its way here.
    INSERT INTO tollkeeper.reservation VALUES (p_id, 0, 0, 'closed', '', tollkeeper.gw_now(), tollkeeper.gw_now(), NULL)
      ON CONFLICT DO NOTHING;
    IF FOUND THEN RETURN 'unknown'; END IF;
    PERFORM tollkeeper.lock_all(ARRAY[p_id]);  -- it came while we looked
  END IF;
  IF p_amount IS NOT NULL THEN
    IF EXISTS (SELECT 1 FROM tollkeeper.step WHERE token = p_token) THEN RETURN 'released'; END IF;
    INSERT INTO tollkeeper.step SELECT p_token, p_id, p_amount FROM tollkeeper.reservation WHERE id = p_id AND state = 'held';
  END IF;
  RETURN tollkeeper.give_back(p_id, p_amount);
END $$;

CREATE FUNCTION tollkeeper.renew(p_owner text, p_ttl float8) RETURNS SETOF text LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  PERFORM tollkeeper.durable();
  PERFORM 1 FROM tollkeeper.reservation WHERE owner = p_owner AND state = 'held' ORDER BY id FOR UPDATE;
  UPDATE tollkeeper.reservation SET expires = tollkeeper.gw_now() + make_interval(secs => p_ttl)
   WHERE owner = p_owner AND state = 'held';
  RETURN QUERY SELECT id FROM tollkeeper.reservation WHERE owner = p_owner AND state = 'expired' ORDER BY id;
END $$;

-- One reservation whose time is over.  p_known: what its holds cost; NULL: nothing is known of them.
CREATE FUNCTION tollkeeper.expire(p_id text, p_known jsonb) RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE r tollkeeper.reservation; p jsonb;
BEGIN
  PERFORM tollkeeper.durable();
  PERFORM 1 FROM tollkeeper.reservation WHERE id = p_id FOR UPDATE SKIP LOCKED;  -- somebody is at it: leave it to them
  IF NOT FOUND THEN RETURN false; END IF;
  PERFORM tollkeeper.lock_all(ARRAY[p_id]);
  PERFORM 1 FROM tollkeeper.reservation WHERE id = p_id AND state = 'held' AND expires <= tollkeeper.gw_now();
  IF NOT FOUND THEN RETURN false; END IF;
  FOR p IN SELECT * FROM jsonb_array_elements(coalesce(p_known, '[]')) LOOP
    PERFORM tollkeeper.post_one(p ->> 'hold', p_id, (p ->> 'amount')::bigint, (p ->> 'held')::bigint, p ->> 'kind',
                                nullif(p -> 'note', 'null'), false, (p ->> 'counted')::boolean);
  END LOOP;
  SELECT * INTO r FROM tollkeeper.reservation WHERE id = p_id;
  IF p_known IS NULL AND r.rest > 0 THEN
    UPDATE tollkeeper.share s SET charged = r.rest FROM tollkeeper.budget_window w
     WHERE s.reservation = p_id AND w.id = s.window_id AND w.hard;
    INSERT INTO tollkeeper.entry (at, hold, reservation, window_id, kind, amount, prime, note)
      SELECT tollkeeper.gw_now(), p_id, p_id, s.window_id, 'expire', s.charged, s.prime, CASE WHEN s.prime THEN r.note END
        FROM tollkeeper.share s WHERE s.reservation = p_id AND s.charged > 0;
  END IF;
  UPDATE tollkeeper.budget_window w SET reserved = w.reserved - r.rest, spent = w.spent + s.charged, seq = w.seq + 1
    FROM tollkeeper.share s WHERE s.reservation = p_id AND s.window_id = w.id;
  UPDATE tollkeeper.reservation SET state = 'expired', rest = 0 WHERE id = p_id;
  DELETE FROM tollkeeper.step WHERE reservation = p_id;
  RETURN true;
END $$;

CREATE FUNCTION tollkeeper.freeze(p_windows bigint[], p_frozen boolean) RETURNS bigint LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE v_changed bigint;
BEGIN
  PERFORM tollkeeper.durable();
  PERFORM 1 FROM tollkeeper.budget_window WHERE id = ANY (p_windows) ORDER BY id FOR UPDATE;
  UPDATE tollkeeper.budget_window SET frozen = p_frozen, seq = seq + 1 WHERE id = ANY (p_windows) AND frozen <> p_frozen;
  GET DIAGNOSTICS v_changed = ROW_COUNT;
  RETURN v_changed;
END $$;

-- Every row is a defect.  `overdue` only while an owner lives: after a stop of all, nobody was there to expire anything.
CREATE VIEW tollkeeper.budget_audit AS
SELECT 'over' AS kind, id AS window_id, NULL::text AS reservation, spent + reserved AS found, ceiling AS expected
  FROM tollkeeper.budget_window WHERE reserved > ceiling - spent
UNION ALL
SELECT 'reserved_drift', w.id, NULL, w.reserved, coalesce(h.rest, 0)::bigint FROM tollkeeper.budget_window w
  LEFT JOIN (SELECT s.window_id, sum(r.rest) AS rest FROM tollkeeper.reservation r JOIN tollkeeper.share s ON s.reservation = r.id
              WHERE r.state = 'held' GROUP BY s.window_id) h ON h.window_id = w.id
  WHERE w.reserved <> coalesce(h.rest, 0)
UNION ALL
SELECT 'ledger_drift', w.id, NULL, w.spent + w.overrun, coalesce(e.amount, 0)::bigint FROM tollkeeper.budget_window w
  LEFT JOIN (SELECT window_id, sum(amount) AS amount FROM tollkeeper.entry GROUP BY window_id) e ON e.window_id = w.id
  WHERE w.spent + w.overrun <> coalesce(e.amount, 0)
UNION ALL
SELECT 'overdue', NULL, id, extract(epoch FROM tollkeeper.gw_now() - expires)::bigint, 0 FROM tollkeeper.reservation
  WHERE state = 'held' AND expires < tollkeeper.gw_now() - interval '30 seconds'
    AND EXISTS (SELECT 1 FROM tollkeeper.reservation WHERE state = 'held' AND expires > tollkeeper.gw_now());
