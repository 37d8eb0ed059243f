-- Forget what is in the store, or put the oldest entry aside, which the store does not take.
--
-- The function `settle` stands before it: `settle.lua`.
--
-- KEYS: what is known of the list, what is pending of it, its shard's stream, its shard's counts, its shard's idle lists,
--       its shard's entries that were put aside; then, if the cache is on this server, the list's key there.
-- ARGV: the epoch, the place of the last entry that is done, why it is put aside ('': it is in the store), the group, the
--       list's name, then the stream's ids that said that something was pending.
-- Returns how many entries were forgotten.

local epoch, through, why, group, name = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local done, bytes, left = 0, 0, true
local first = redis.call('HGET', KEYS[1], 'e') == epoch and redis.call('LINDEX', KEYS[2], 0)
local place = first and tonumber(string.match(first, '^%d+'))
-- Places follow one another.
if place and (why == '' and place <= through or place == through) then
  local entries = redis.call('LRANGE', KEYS[2], 0, through - place)
  done = #entries
  -- What the cached list lacks must not go before it has it.
  if KEYS[7] then settle({ KEYS[7] }) end
  for i = 1, done do bytes = bytes + #entries[i] end
  if why ~= '' then
    redis.call('RPUSH', KEYS[6], cjson.encode({ list = name, why = why }) .. '\n' .. first)
  end
  redis.call('LPOP', KEYS[2], done)
end
if done > 0 then redis.call('HINCRBY', KEYS[4], 'h', string.format('%.0f', -(done * 4294967296 + bytes))) end
left = redis.call('EXISTS', KEYS[2]) == 1
if #ARGV > 5 then
  -- What came meanwhile has no word of its own in the stream.
  if left then redis.call('XADD', KEYS[3], '*', 'l', name) end
  redis.call('XACK', KEYS[3], group, unpack(ARGV, 6))
  redis.call('XDEL', KEYS[3], unpack(ARGV, 6))
end
if not left then redis.call('ZADD', KEYS[5], redis.call('TIME')[1], name) end
return done
