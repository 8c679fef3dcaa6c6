-- When the next lease ends, for want of a heartbeat, by its run timeout or by its deadline. NULL: nothing runs.
select min(least(until, confirmed_at + run_timeout, stop_at)) as expires_at, now() as at from lease
