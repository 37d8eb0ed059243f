-- Give a lease back without filling, and wake those who wait for it.
--
-- KEYS: the lease.
-- ARGV: the lease's token.
-- Returns 1 if it still lived, 0 if not.

local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or string.match(held, '^[^|]*') ~= ARGV[1] then return 0 end
redis.call('UNLINK', KEYS[1])
for waiter in string.gmatch(held, '|([^|]+)') do redis.pcall('PUBLISH', waiter, 'f' .. KEYS[1]) end
return 1
