-- Locks the leases that a batch of results was reported under. complete.sql must run next, in the same transaction.
--
--   $1 bigint[] tasks $2 int[] step_no $3 uuid[] tokens, all sorted by task and step
--
-- A lease is updated in place by heartbeats, and a statement that locks a row another has just updated goes on with
-- the new version while its own snapshot, and the ctid in it, stay old: deleting by that ctid would leave the lease
-- behind. So the locks come first and the move takes a fresh snapshot, in which nothing it wants can change.
-- The locks are taken in the order of the key, as everywhere, or two batches that cross would wait for each other.
select set_config('tasker_bench_floor.locked', count(*)::text, true)
from unnest($1::bigint[], $2::int[], $3::uuid[]) as report (task_id, step_no, token)
cross join lateral (
  select 1
  from lease
  where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
  limit 1
  for update
) as held;
