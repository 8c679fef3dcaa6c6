-- What time alone has brought about, in one look: when the next lease ends (NULL: nothing runs), whether a deadline has
-- passed, and whether any step is parked, whose task may have come to its end in error without a note (unsettled.sql).
-- $1 at timestamptz, $2 leases boolean: whether to read them, dead ones that an old snapshot keeps and all
select
  case when $2 then (select min(least(until, confirmed_at + run_timeout, stop_at)) from lease) end as expires_at,
  coalesce($1, now()) as at,
  exists (select from deadline where due_at <= coalesce($1, now())) as overdue,
  exists (select from parked) as parked
