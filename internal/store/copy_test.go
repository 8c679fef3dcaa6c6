package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// wideTask has 600 steps: roots, a chain, a join of a few and one so wide that it is counted down in stripes, and every option.
func wideTask(notBefore *time.Time) *task.Submission {
	sub := &task.Submission{
		Namespace: "default", Name: "wide", Context: "{}", Digest: []byte("digest"), NotBefore: notBefore, Deadline: new(epoch.Add(time.Hour)),
	}
	var wide []int
	for i := range 300 {
		s := step()
		if i > 0 && i < 100 {
			s = step(i)
		}
		s.Name = fmt.Sprintf("root%d", i+1)
		sub.Steps, wide = append(sub.Steps, s), append(wide, i+1)
	}
	all := step(wide...)
	all.Name = "all"
	some := step(1, 150, 300)
	some.Name, some.HandlerConfig = "some", `{"a": "\\N	b"}`
	some.Policy = task.Policy{
		RetryLimit: 7, MaxLostLeases: 4, Initial: new(1500 * time.Millisecond), Multiplier: new(1.5), Max: new(time.Minute), Jitter: new(0.25),
		MaxRetryAfter: new(48 * time.Hour), Lease: new(5 * time.Second), RunTimeout: new(time.Microsecond), MaxElapsed: new(72 * time.Hour),
		NonRetryable: []string{"A", `"B"`, `C\`},
	}
	sub.Steps = append(sub.Steps, all, some)
	for i := range 298 {
		s := step(302 + i)
		s.Name = fmt.Sprintf("chain%d", i+1)
		sub.Steps = append(sub.Steps, s)
	}
	return sub
}

// How many steps a submit has decides how they are stored, and nothing else.
func TestCopiedStepsAreAsOthers(t *testing.T) {
	for name, notBefore := range map[string]*time.Time{"at once": nil, "later": new(epoch.Add(time.Minute))} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			sub := wideTask(notBefore)
			lane, _, err := w.s.EnsureLane(w.Context(), store.Lane{NamespaceID: w.ns, Handler: "work", Priority: 1})
			w.ok(err)
			lanes := make([]int32, len(sub.Steps))
			for i := range lanes {
				lanes[i] = lane
			}
			ids, err := w.ids.Take(w.Context(), 3)
			w.ok(err)
			submit := func(ids ...task.ID) store.Wake {
				var tasks []store.NewTask
				for _, id := range ids {
					tasks = append(tasks, store.NewTask{ID: id, Lanes: lanes, Submission: sub})
				}
				answers, change, err := w.s.Submit(w.Context(), w.ns, tasks, false)
				w.ok(err)
				for i, a := range answers {
					equal(w, "task", a.TaskID, ids[i])
					equal(w, "created", a.CreatedAt.Equal(epoch), true)
				}
				equal(w, "lanes woken", len(change.Wake), 1)
				return change.Wake[0]
			}
			alone := submit(ids[0])
			if len(sub.Steps) >= store.CopyFrom || 2*len(sub.Steps) < store.CopyFrom {
				t.Fatal("one task must have too few steps for COPY, and two enough")
			}
			twice := submit(ids[1:]...)
			equal(w, "roots", twice.Count, 2*alone.Count)
			equal(w, "due", twice.DueAt == nil, notBefore == nil)
			for _, table := range []string{"task", "step", "ready", "backoff", "deadline"} {
				rows := func(id task.ID) string {
					return value[string](w, fmt.Sprintf(`select count(*) || coalesce(string_agg(row, e'\n' order by row), '') from (
						select (to_jsonb(x) - 'task_id' - 'seq')::text as row from %s x where task_id = %d) x`, table, int64(id)))
				}
				for _, id := range ids[1:] {
					equal(w, table, rows(id), rows(ids[0]))
				}
			}
			equal(w, "history", value[string](w, "select string_agg(task_ids::text || attempts::text, ' ' order by history_id) from history where kind = 'submitted'"),
				fmt.Sprintf("{%d}{600} {%d,%d}{600,600}", int64(ids[0]), int64(ids[1]), int64(ids[2])))
		})
	}
}
