-- Set a key, and publish that it was set: in one step, for nobody may hear of it before it is done.
--
-- KEYS: key.
-- ARGV: value, ttl ms, the channel that changes are published on ('': none), what is published.
-- Returns 1.

redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
-- An access list may forbid channels: then no process hears its own heartbeat, and none trusts what it holds itself.
if ARGV[3] ~= '' then redis.pcall('PUBLISH', ARGV[3], ARGV[4]) end
return 1
