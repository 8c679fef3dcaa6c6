-- What stands in lanes: the lowest seq that is ready (NULL: none) and the earliest instant a backing-off step is due.
-- $1 lane_id int[]
select lane.lane_id, first_ready.seq, first_due.due_at, now() as at
from unnest($1::int[]) as lane (lane_id)
left join lateral (
  select ready.seq from ready where ready.lane_id = lane.lane_id order by ready.lane_id, ready.seq limit 1
) first_ready on true
left join lateral (
  select backoff.due_at from backoff where backoff.lane_id = lane.lane_id order by backoff.lane_id, backoff.due_at limit 1
) first_due on true
where first_ready.seq is not null or first_due.due_at is not null
