-- What happened to a circuit within a time, and first where it stood then.
-- $1 namespace text, $2 circuit text, $3 from, $4 until timestamptz
(select $3::timestamptz as at, to_state as from_state, to_state, 'before' as cause, null::int as observed, null::int as failed, null::int as slow
 from circuit_events_v where namespace = $1 and circuit = $2 and at < $3
 order by event_id desc limit 1)
union all
(select at, from_state, to_state, cause, observed, failed, slow
 from circuit_events_v where namespace = $1 and circuit = $2 and at >= $3 and at < $4
 order by event_id)
