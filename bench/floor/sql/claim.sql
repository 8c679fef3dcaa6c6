-- Grants leases on the steps that have waited longest in the given lanes: due retries first, then fresh rows.
--
--   $1 int[] lanes $2 bigint[] seq to look behind, one a lane $3 int[] how many to take, one a lane
--   $4 uuid[] tokens $5 int[] session of each token: at least as many as rows can be taken
--   $6 interval length of a lease
--
-- Locking and deleting in one statement is safe here and only here: rows of `ready` and `backoff` are inserted and
-- deleted but never updated, so the row version that was locked is the row. Looking behind a cursor keeps the claim
-- from walking over the rows that others have taken and no vacuum has yet removed.
--
-- Each look-up is an unnest with a limited lateral, and each delete takes its rows by ctid: the cached plan then has
-- one possible shape, whatever the tables held when it was made.
with due as (
  delete from backoff
  where ctid = any (array(
    select candidate.ctid
    from unnest($1::int[], $3::int[]) as want (lane_id, room)
    cross join lateral (
      select backoff.ctid
      from backoff
      where backoff.lane_id = want.lane_id and backoff.due_at <= now()
      order by backoff.lane_id, backoff.due_at, backoff.task_id, backoff.step_no
      limit want.room
      for update skip locked
    ) as candidate
  ))
  returning lane_id, null::bigint as seq, task_id, step_no, attempts, dispatches, lost_leases, epoch, event_no
),
fresh as (
  delete from ready
  where ctid = any (array(
    select candidate.ctid
    from unnest($1::int[], $2::bigint[], $3::int[]) as want (lane_id, after_seq, room)
    cross join lateral (
      select ready.ctid
      from ready
      where ready.lane_id = want.lane_id and ready.seq > want.after_seq
      order by ready.lane_id, ready.seq
      limit want.room - (select count(*) from due where due.lane_id = want.lane_id)
      for update skip locked
    ) as candidate
  ))
  returning lane_id, seq, task_id, step_no, attempts, dispatches, lost_leases, epoch, event_no
),
granted as materialized (
  select lane_id, seq, task_id, step_no, attempts, dispatches + 1 as dispatches, lost_leases, epoch,
         event_no + 1 as event_no, row_number() over () as slot
  from (select * from due union all select * from fresh) as runnable
),
new_lease as (
  insert into lease (task_id, step_no, lane_id, token, session_id, until, attempts, dispatches, lost_leases, epoch, event_no)
  select task_id, step_no, lane_id, ($4::uuid[])[slot], ($5::int[])[slot], now() + $6::interval, attempts, dispatches,
         lost_leases, epoch, event_no
  from granted
),
entry as (
  insert into history (at, kind, task_ids, step_nos, event_nos, dispatches, session_ids)
  select clock_timestamp(), 2, array_agg(task_id), array_agg(step_no), array_agg(event_no), array_agg(dispatches),
         array_agg(($5::int[])[slot])
  from granted
  having count(*) > 0
)
select granted.slot, granted.seq, granted.task_id, granted.step_no, granted.dispatches, granted.attempts, step.name, step.context
from granted
cross join lateral (
  select step.name, step.context
  from step
  where step.task_id = granted.task_id and step.step_no = granted.step_no
  limit 1
) as step;
