-- Read cached things of one owner. What cannot be trusted is deleted; what is missing is leased to the reader.
--
-- The function `settle` stands before it: `settle.lua`.
--
-- KEYS: the owner's generation; then, for each read, its key and its lease.
-- ARGV: the store's life, a new random id, lease ms (0: no leases), generation ms, the channel of a reader that waits for
--       leases ('': it does not); then, for each read, its shape, the most items wanted (0: all), 1 to slide the expiry, how
--       many fields are wanted (0: all), those fields.
-- Returns the generation, then for each read what the server holds, header included, or, for a miss, the integer
--       2 * reason + (1 if leased); reasons: 0 absent, 1 outdated, 2 corrupt, 3 there is no memory for a lease, nor for a fill.
--
-- One loop without functions of its own: the server makes each anew at every call.

local HEADER = '^1;([%w_%-]+);([%w_%-]+);(%d+);([%w_%-]+);(%d+);[wp];(%d+)([;%d]*)'

local refused -- why the server took no generation
local generation = redis.pcall('GET', KEYS[1])
if type(generation) ~= 'string' or #generation > 64 or not string.find(generation, '^[%w_%-]+$') then
  -- Never a fixed value: a generation that was evicted must not come back with what it once covered.
  local set = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
  if set.ok then generation = ARGV[2] else generation, refused = '', set end
end

local replies, at = { generation }, 6
for i = 2, #KEYS, 2 do
  local key, shape, last, fields = KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  local raw, header, actual -- what to reply; its header; how many items there are, besides the header

  if shape == 'v' then
    raw = redis.pcall('GET', key)
    if type(raw) == 'string' then header = raw end
  elseif shape == 'l' then
    settle({ key })
    raw = redis.pcall('LRANGE', key, last > 0 and -1 - last or 0, -1)
    actual = #raw - 1
    if last > 0 and actual == last then
      -- The header is the oldest element: it replaces the one item too many that was asked for.
      raw[1], actual = redis.call('LINDEX', key, 0), redis.call('LLEN', key) - 1
    end
    header = raw[1]
  elseif fields > 0 then
    raw = redis.pcall('HMGET', key, '\000', unpack(ARGV, at + 4, at + 3 + fields))
    if not raw.err then header, actual = raw[1], redis.call('HLEN', key) - 1 end
  else
    raw = redis.pcall('HGETALL', key)
    actual = #raw / 2 - 1
    if actual >= 0 then header = redis.call('HGET', key, '\000') end
  end

  local reason
  if header then
    local pattern = HEADER .. (shape == 'v' and '\n' or '$')
    local incarnation, of, version, key_id, count, ttl, fresh = string.match(header, pattern)
    if not ttl or #version > 18 or #count > 9 or #ttl > 15 then
      reason = 2
    elseif fresh ~= '' and (#fresh > 26 or not string.find(fresh, '^;%d+;%d+$')) then
      reason = 2
    elseif incarnation ~= ARGV[1] or of ~= generation or key_id ~= '-' then
      reason = 1
    elseif actual and actual ~= tonumber(count) then
      reason = 2
    elseif ARGV[at + 2] == '1' and ttl ~= '0' then
      redis.call('PEXPIRE', key, ttl)
    end
  else
    -- Neither text nor an error, and empty: it is not there.
    reason = (raw == false or actual == -1 and not raw.err) and 0 or 2
  end

  if reason then
    if reason > 0 then redis.call('UNLINK', key) end
    raw = reason * 2
    local wanted = ARGV[3] ~= '0'
    local set = wanted and (refused or redis.pcall('SET', KEYS[i + 1], ARGV[2], 'NX', 'PX', ARGV[3]))
    if set and set.ok then
      raw = raw + 1
    elseif wanted and not set then
      -- Somebody else is loading. The lease notes who waits for it, a few dozen at most: others ask again by themselves.
      local held = ARGV[5] ~= '' and redis.call('GET', KEYS[i + 1])
      if held and #held < 4096 and not string.find(held, ARGV[5], 1, true) then
        redis.pcall('SET', KEYS[i + 1], held .. '|' .. ARGV[5], 'KEEPTTL')
      end
    elseif set then
      -- Out of memory nobody can fill. Any other refusal is the server's trouble.
      if not string.find(set.err, 'OOM', 1, true) then return redis.error_reply(set.err) end
      raw = 6
    end
  end
  replies[#replies + 1] = raw
  at = at + 4 + fields
end
return replies
