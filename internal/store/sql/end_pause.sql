-- Ends what stands of a handler's pause, in a transaction that has the namespace's pauses for itself (lock_pauses.sql). One whose
-- time is up ended then, by itself.
-- $1 at timestamptz, $2 namespace_id int, $3 handler text, $4 actor text, $5 reason text
update pause p set
  ended_at = least(p.until, it.at),
  ended_by = case when it.lasted then $4 end,
  end_reason = case when it.lasted then $5 end
from (
  select standing.pause_id, now_at.at, standing.until is null or standing.until > now_at.at as lasted
  from (select coalesce($1::timestamptz, clock_timestamp()) as at) as now_at
  cross join pause standing
  where standing.namespace_id = $2 and standing.handler = $3 and standing.ended_at is null
) as it
where p.pause_id = it.pause_id
returning it.lasted, p.reason, coalesce(p.actor, ''), p.since, p.until
