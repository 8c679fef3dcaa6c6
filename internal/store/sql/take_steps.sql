-- Takes steps in error away from where they stand, for an operator's act. A step that has moved on is absent.
-- ready, backoff and parked rows are never updated, so what is locked here is what is deleted here. The steps stand
-- nowhere until this transaction puts them somewhere.
-- $1 task_id bigint[], $2 step_no int[], $3 place text[]; sorted by (task_id, step_no): the lock order
with locked as materialized (
  select wanted.task_id, wanted.step_no, wanted.place, standing.*
  from unnest($1::bigint[], $2::int[], $3::text[]) with ordinality as wanted (task_id, step_no, place, n)
  cross join lateral (
    select * from (
      select ready.ctid as tid, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases, started
      from ready
      where wanted.place = 'ready' and task_id = wanted.task_id and step_no = wanted.step_no and failures > 0
      for update
    ) r
    union all
    select * from (
      select backoff.ctid, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases, started
      from backoff
      where wanted.place = 'backoff' and task_id = wanted.task_id and step_no = wanted.step_no and failures > 0
      for update
    ) b
    union all
    select * from (
      select parked.ctid, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases, started
      from parked
      where wanted.place = 'parked' and task_id = wanted.task_id and step_no = wanted.step_no
      for update
    ) p
  ) standing
),
from_ready as (
  delete from ready where ctid = any (array(select tid from locked where place = 'ready')) returning 1
),
from_backoff as (
  delete from backoff where ctid = any (array(select tid from locked where place = 'backoff')) returning 1
),
from_parked as (
  delete from parked where ctid = any (array(select tid from locked where place = 'parked')) returning 1
)
select task_id, step_no, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases::int as lost_leases,
  started or failures > 0 as started,
  must_move((select count(*) from from_ready) + (select count(*) from from_backoff) + (select count(*) from from_parked),
    (select count(*)::int from locked)) as moved
from locked
