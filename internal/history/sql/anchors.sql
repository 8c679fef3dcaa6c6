-- Records of failures whose delays do not start when they were recorded. A record of several failures bears the last
-- instant of them, so the latest start is that instant, unless one without a delay may have been the last.
select history.history_id, history.recorded_at, max(entry.next_retry_at - entry.base_delay - entry.jitter) as anchor
from history
cross join lateral unnest(history.next_retry_ats, history.base_delays, history.jitters) as entry (next_retry_at, base_delay, jitter)
where history.kind = 'concluded' and history.base_delays is not null
group by history.history_id, history.recorded_at
having max(entry.next_retry_at - entry.base_delay - entry.jitter) > history.recorded_at
  or bool_and(entry.base_delay is not null)
    and max(entry.next_retry_at - entry.base_delay - entry.jitter) is distinct from history.recorded_at
order by history.history_id
