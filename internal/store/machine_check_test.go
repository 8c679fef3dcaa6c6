package store_test

import (
	"cmp"
	"context"
	"slices"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
)

const (
	seeSteps = `select workflow_step_id, task_id, name, current_state, dependencies_satisfied, retry_eligible, ready_for_execution,
		coalesce(extract(epoch from last_failure_at) * 1000000, 0)::bigint, coalesce(extract(epoch from next_retry_at) * 1000000, 0)::bigint,
		total_parents, completed_parents, attempts, retry_limit, coalesce(backoff_request_seconds * 1000000, -1)::bigint,
		coalesce(extract(epoch from last_attempted_at) * 1000000, 0)::bigint, dispatches, lost_leases, coalesce(error_code, ''),
		coalesce(array_to_string(blocked_by, ','), ''), coalesce(extract(epoch from last_started_at) * 1000000, 0)::bigint, epoch,
		case when waiting_for = 'paused' then coalesce(extract(epoch from waiting_until) * 1000000, 0)::bigint else -1 end
		from step_readiness_at($1, null, $2) order by 1`
	seeTasks = `select task_id, status, total_steps, pending_steps, in_progress_steps, completed_steps, failed_steps, ready_steps,
		waiting_for_retry_steps, cancelled_steps, execution_status, recommended_action, completion_percentage::float8, health_status
		from task_execution_at($1, $2) order by 1`
	// The rows that steps stand in, and the number of each one's last event.
	seePlaces = `select task_id + step_no, 'ready', event_no from ready where task_id = any ($1)
		union all select task_id + step_no, 'backoff', event_no from backoff where task_id = any ($1)
		union all select task_id + step_no, 'lease', event_no from lease where task_id = any ($1)
		union all select task_id + step_no, 'parked', event_no from parked where task_id = any ($1)
		union all select task_id + step_no, 'step_end', event_no from step_end where task_id = any ($1)
		order by 1, 2`
	seeEnds = `select task_id, state::text from task_end where task_id = any ($1) order by 1`
	seeLate = `select task_id + step_no, dispatch, outcome::text, reports from late_report where task_id = any ($1) order by 1, 2`
)

type standingStep struct {
	ID      int64
	Place   string
	EventNo int
}

type recordedEnd struct {
	TaskID int64
	State  string
}

type shownLate struct {
	ID       int64
	Dispatch int
	Outcome  string
	Reports  int
}

// seen is all that can be seen of the tasks, in one snapshot.
type seen struct {
	Steps  []shownStep
	Tasks  []shownTask
	Places []standingStep
	Ends   []recordedEnd
	Late   []shownLate
	Ready  []int64 // what a claim of everything is granted
}

// equal is what cmp.Equal would say, quickly.
func (s *seen) equal(t *seen) bool {
	return slices.Equal(s.Steps, t.Steps) && slices.Equal(s.Tasks, t.Tasks) && slices.Equal(s.Places, t.Places) &&
		slices.Equal(s.Ends, t.Ends) && slices.Equal(s.Late, t.Late) && slices.Equal(s.Ready, t.Ready)
}

func into[T any](b *pgx.Batch, rows *[]T, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(r pgx.Rows) (err error) {
		*rows, err = pgx.CollectRows(r, pgx.RowToStructByPos[T])
		return err
	})
}

// look asks the store.
func (x *machine) look() (s seen) {
	ids := []int64{}
	for _, t := range x.m.tasks {
		ids = append(ids, t.id)
	}
	b := &pgx.Batch{}
	into(b, &s.Steps, seeSteps, ids, x.now)
	into(b, &s.Tasks, seeTasks, ids, x.now)
	into(b, &s.Places, seePlaces, ids)
	into(b, &s.Ends, seeEnds, ids)
	into(b, &s.Late, seeLate, ids)
	grants, err := x.s.Preview(context.Background(), x.ns, x.claimAll(), b)
	x.ok(err)
	for _, g := range grants {
		s.Ready = append(s.Ready, int64(g.Step.Token.Step))
	}
	slices.Sort(s.Ready)
	return s
}

// claimAll asks for everything in every lane.
func (x *machine) claimAll() *store.Claim {
	c := &store.Claim{Sessions: []store.SessionFence{x.watcher}}
	for _, lane := range x.lanes {
		c.Lanes = append(c.Lanes, store.LaneWant{LaneID: lane, Slots: slices.Repeat([]int32{x.watcher.SessionID}, 30)})
	}
	x.choose(c, x.pauses())
	return c
}

// expect asks the model.
func (x *machine) expect() (s seen) {
	for _, t := range x.m.tasks {
		if t.purged {
			continue
		}
		s.Tasks = append(s.Tasks, x.m.sum(t))
		if t.noted != "" {
			s.Ends = append(s.Ends, recordedEnd{t.id, t.noted})
		}
		for _, m := range t.steps {
			r := x.m.show(m)
			s.Steps = append(s.Steps, r)
			if r.PausedUntil >= 0 {
				x.reached["kept by a pause"]++
			}
			if r.ReadyForExecution {
				s.Ready = append(s.Ready, r.ID)
			}
			if m.place != isBlocked {
				s.Places = append(s.Places, standingStep{r.ID, string(m.place), m.events})
			}
		}
	}
	for _, i := range x.issued {
		if i.late != nil && !i.step.task.purged {
			s.Late = append(s.Late, shownLate{i.step.task.id + int64(i.step.no), i.number, i.late.outcome, i.late.reports})
		}
	}
	slices.SortFunc(s.Late, func(a, b shownLate) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Dispatch, b.Dispatch)) })
	return s
}

func (x *machine) check(t *rapid.T) {
	x.t = t
	x.reached["steps"]++
	got, want := x.look(), x.expect()
	if !got.equal(&want) {
		diff := gocmp.Diff(want, got, cmpopts.EquateEmpty())
		t.Fatalf("S13: the store (+) is not what the model (-) says, at %v:\n%s", x.now, diff)
	}
	for _, mt := range x.m.tasks {
		if x.errors[mt] && mt.noted == "" {
			x.reached["task re-opened"]++
		}
		x.errors[mt] = mt.noted == "error"
	}
	for _, s := range got.Tasks {
		if s.Status == "complete" {
			x.reached["task complete"]++
		}
		if sum := s.Pending + s.InProgress + s.Completed + s.Failed + s.Ready + s.Waiting + s.Cancelled; sum != s.Total {
			t.Fatalf("the buckets of %+v sum to %d", s, sum)
		}
		if mt := x.task(s.TaskID); s.Status == "error" && mt.noted == "" && !mt.mayEnd {
			t.Fatalf("S13: task %d came to its end in error, and no verb said that it may have", s.TaskID)
		}
	}
}
