-- The pauses that keep a handler's steps back at an instant (NULL: now): of the handler, and of the whole namespace. It is inlined
-- into the statement that calls it, as a look-up.
create or replace function pauses_over(of_namespace int, of_handler text, at timestamptz)
returns setof pause
language sql stable
as $$
  select pause.*
  from pause
  where pause.namespace_id = of_namespace and pause.handler = any (array['', of_handler]) and pause.ended_at is null
    and (pause.until is null or pause.until > coalesce(at, now()))
$$;
comment on function pauses_over(int, text, timestamptz) is
  'The pauses in force over a handler at an instant (NULL: now). Whoever shows readiness asks it; servers leave the same lanes out of their claims.';
