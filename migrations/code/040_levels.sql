-- Depth in the graph. A recursive query visits a step once for every length of path to it, which is quadratic for a long
-- chain with short cuts; peeling the graph level by level visits each edge once.

-- Step k of the graph has number step_nos[k] and as many parents as parent_counts[k]; edges run from edge_parents[i] to
-- edge_children[i], sorted by parent.
create or replace function dependency_levels(step_nos int[], parent_counts int[], edge_parents int[], edge_children int[],
  out step_no int, out level int)
returns setof record
language plpgsql immutable parallel safe
as $$
declare
  -- All three are indexed by step number.
  waits_for int[];
  first_edge int[];
  depth int[];
  queue int[] := '{}';
  head int := 1;
  tail int := 0;
  widest int;
  edge int;
  child int;
  edge_total int := coalesce(array_length(edge_parents, 1), 0);
begin
  if coalesce(array_length(step_nos, 1), 0) = 0 then
    return;
  end if;
  select max(n) into widest from unnest(step_nos) as n;
  waits_for := array_fill(0, array[widest]);
  first_edge := array_fill(0, array[widest]);
  depth := array_fill(0, array[widest]);
  queue := array_fill(0, array[array_length(step_nos, 1)]);
  for i in 1 .. array_length(step_nos, 1) loop
    waits_for[step_nos[i]] := parent_counts[i];
    if parent_counts[i] = 0 then
      tail := tail + 1;
      queue[tail] := step_nos[i];
    end if;
  end loop;
  for i in reverse edge_total .. 1 loop
    first_edge[edge_parents[i]] := i;
  end loop;
  while head <= tail loop
    step_no := queue[head];
    head := head + 1;
    level := depth[step_no];
    return next;
    edge := first_edge[step_no];
    while edge > 0 and edge <= edge_total and edge_parents[edge] = step_no loop
      child := edge_children[edge];
      depth[child] := greatest(depth[child], level + 1);
      waits_for[child] := waits_for[child] - 1;
      if waits_for[child] = 0 then
        tail := tail + 1;
        queue[tail] := child;
      end if;
      edge := edge + 1;
    end loop;
  end loop;
end
$$;
comment on function dependency_levels(int[], int[], int[], int[]) is
  'Pure: the depth of each step of a graph given as arrays. calculate_dependency_levels shows it.';

create or replace function calculate_dependency_levels(task_id bigint)
returns setof step_dependency_level
language sql stable security definer set search_path from current
as $$
  select calculate_dependency_levels.task_id + found.step_no, found.level
  from (
    select array_agg(step.step_no order by step.step_no) as step_nos,
           array_agg(coalesce(cardinality(step.parents), 0) order by step.step_no) as parent_counts
    from step
    where step.task_id = calculate_dependency_levels.task_id
  ) as node
  cross join (
    select array_agg(parent.step_no order by parent.step_no, step.step_no) as parents,
           array_agg(step.step_no order by parent.step_no, step.step_no) as children
    from step
    cross join lateral unnest(step.parents) as parent (step_no)
    where step.task_id = calculate_dependency_levels.task_id
  ) as edge
  cross join lateral dependency_levels(node.step_nos, node.parent_counts, edge.parents, edge.children) as found
  order by found.level, found.step_no
$$;
comment on function calculate_dependency_levels(bigint) is
'The steps of a task by depth, then number. An unknown task gives no rows. The columns:
  workflow_step_id  the step''s id
  dependency_level  0 without parents, else one more than its deepest parent''s';
