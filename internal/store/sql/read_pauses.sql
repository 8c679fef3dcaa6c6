-- The pauses of a namespace that are in force, and up to which number that is all: one snapshot. Those that end in the future by
-- the transaction's clock, which is no later than any claim's that follows.
-- $1 at timestamptz, $2 namespace_id int
select n.pauses, coalesce($1, now()) as at, array_agg(p.handler) filter (where p.pause_id is not null) as handlers,
  array_agg(p.until) filter (where p.pause_id is not null) as untils
from namespace n
left join pause p on p.namespace_id = n.namespace_id and p.ended_at is null and (p.until is null or p.until > coalesce($1, now()))
where n.namespace_id = $2
group by n.pauses
