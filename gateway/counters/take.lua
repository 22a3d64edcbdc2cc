-- One call of a replica: gives back, keeps its leases, then takes all charges or none.  Runs alone and whole.
--
-- KEYS[1]  this call's record: a repeat of the call is answered from it, and changes nothing
-- KEYS[2…] what the call touches, named below by their place in KEYS
-- ARGV[1]  JSON: free {{key, lease}}             leases given back
--                keep {{key, lease}}             leases still in use
--                give {{key, window, n, slot, born}}   n > 0: given back to the slot it was taken in; n < 0: used on top
--                take {{key, amount, limit, window}}, lease
-- Windows are in ms; 0: leases.  Answers: granted, which, wait in ms (-1: never), then of each charge what remains, ms until
-- it is whole, slot, born.
--
-- A window is a hash: total, last (the newest slot), born (us; what was taken before a server was emptied is not given
-- back to what came after), and a ring of 61 slots.  Leases are a sorted set by when they end.

local SLOTS, LEASE, RECORD = 60, 45000, 30000

local said = redis.call('GET', KEYS[1])
if said then
  return cmsgpack.unpack(said)
end
local call = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local birth = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Forgets what has left the window; returns what is used of it, the slot of now, and when it was born.
local function roll(key, slot)
  local held = redis.call('HMGET', key, 'total', 'last', 'born')
  if not held[1] then
    return 0, slot, birth
  end
  local total, last, born = tonumber(held[1]), tonumber(held[2]), tonumber(held[3])
  if math.abs(slot - last) > SLOTS then -- long idle, or the server's clock was set
    redis.call('DEL', key)
    return 0, slot, birth
  end
  if slot <= last then
    return total, last, born
  end
  local left = {}
  for i = last + 1, slot do
    left[#left + 1] = i % (SLOTS + 1)
  end
  for _, amount in ipairs(redis.call('HMGET', key, unpack(left))) do
    total = total - (tonumber(amount or 0))
  end
  redis.call('HDEL', key, unpack(left))
  redis.call('HSET', key, 'total', total, 'last', slot)
  return total, slot, born
end

local function add(key, window, amount, slot, born)
  redis.call('HINCRBY', key, 'total', amount)
  redis.call('HINCRBY', key, slot % (SLOTS + 1), amount)
  redis.call('HSET', key, 'last', slot, 'born', born)
  redis.call('PEXPIRE', key, math.ceil(window + 2 * window / SLOTS))
end

local function lease(key, id)
  redis.call('ZADD', key, now + LEASE, id)
  redis.call('PEXPIRE', key, LEASE)
end

-- ms until `excess` has left the window.
local function wait_for(key, slot, window, excess)
  local ring = {}
  for i = slot - SLOTS, slot do
    ring[#ring + 1] = i % (SLOTS + 1)
  end
  for at, amount in ipairs(redis.call('HMGET', key, unpack(ring))) do
    excess = excess - (tonumber(amount or 0))
    if excess <= 0 then
      return math.ceil((slot + at) * window / SLOTS) - now
    end
  end
  return math.ceil(window)
end

for _, f in ipairs(call.free) do
  redis.call('ZREM', KEYS[f[1]], f[2])
end
for _, k in ipairs(call.keep) do
  lease(KEYS[k[1]], k[2])
end
for _, g in ipairs(call.give) do
  local key, window, n, slot = KEYS[g[1]], g[2], g[3], g[4]
  if n < 0 then
    local _, current, born = roll(key, math.floor(now * SLOTS / window))
    add(key, window, -n, current, born)
  else
    local held = redis.call('HMGET', key, 'last', 'born')
    local last = tonumber(held[1] or -1)
    if last >= slot and last - slot <= SLOTS and tonumber(held[2]) == g[5] then
      redis.call('HINCRBY', key, slot % (SLOTS + 1), -n)
      redis.call('HINCRBY', key, 'total', -n)
    end
  end
end

local which, longest = 0, 0
local used, slots, births = {}, {}, {}
for i, c in ipairs(call.take) do
  local key, amount, limit, window = KEYS[c[1]], c[2], c[3], c[4]
  if window == 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    used[i], slots[i], births[i] = redis.call('ZCARD', key), 0, 0
  else
    used[i], slots[i], births[i] = roll(key, math.floor(now * SLOTS / window))
  end
  if used[i] + amount > limit then
    local wait = 1000 -- nobody knows when a running call ends
    if amount > limit then
      wait = -1
    elseif window > 0 then
      wait = wait_for(key, slots[i], window, used[i] + amount - limit)
    end
    if which == 0 or (longest >= 0 and (wait < 0 or wait > longest)) then
      which, longest = i, wait
    end
  end
end

local answer = { which == 0 and 1 or 0, which, longest }
for i, c in ipairs(call.take) do
  local key, amount, window = KEYS[c[1]], c[2], c[4]
  if which == 0 then
    used[i] = used[i] + amount
    if window == 0 then
      lease(key, call.lease)
    else
      add(key, window, amount, slots[i], births[i])
    end
  end
  local whole = 0
  if window > 0 and used[i] > 0 then
    whole = math.ceil((slots[i] + SLOTS + 1) * window / SLOTS) - now
  end
  answer[#answer + 1] = math.max(0, c[3] - used[i])
  answer[#answer + 1] = whole
  answer[#answer + 1] = slots[i]
  answer[#answer + 1] = births[i]
end
redis.call('SET', KEYS[1], cmsgpack.pack(answer), 'PX', RECORD)
return answer
