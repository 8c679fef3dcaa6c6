-- What time alone has brought about, in one look: when the next lease ends (NULL: nothing runs), whether a deadline has
-- passed, and whether any step is parked, whose task may have come to its end in error without a note (unsettled.sql). A
-- standby, which answers as well, says that it is one.
-- $1 at timestamptz
select
  (select min(least(until, confirmed_at + run_timeout, stop_at)) from lease) as expires_at,
  coalesce($1, now()) as at,
  exists (select from deadline where due_at <= coalesce($1, now())) as overdue,
  exists (select from parked) as parked,
  pg_is_in_recovery() as standby
