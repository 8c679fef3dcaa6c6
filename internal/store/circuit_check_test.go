package store_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func (x *circuitMachine) check(t *rapid.T) {
	x.t = t
	x.checkCircuits()
	if x.draws().chance("look at readiness", 60) {
		x.checkReadiness()
	}
}

// shownCircuit is what can be seen of a circuit.
type shownCircuit struct {
	State, Cause                         string
	Generation                           int
	Since, OpenUntil, HeldFrom, HeldTo   time.Time
	OpenFor                              time.Duration
	Observed, Failed, Slow, Failing      int
	Probes, Wave, WaveDone, Out, Waiting int
	Barred                               string
}

func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func (x *circuitMachine) checkCircuits() {
	d := x.draws()
	found, err := x.server().Circuits(context.Background(), x.ns, store.CircuitFilter{})
	x.ok(err)
	same(d, "circuits", len(found), len(x.m.circuits))
	for i, c := range x.m.circuits {
		f := found[i]
		got := shownCircuit{
			State: string(f.State), Cause: string(f.Cause), Generation: int(f.Generation), Since: f.Since.UTC(), OpenUntil: utc(f.OpenUntil), OpenFor: f.OpenFor,
			Observed: f.Observed, Failed: f.Failed, Slow: f.Slow, Failing: f.FailingWorkers, Probes: f.Probes, Wave: f.Wave, WaveDone: f.WaveDone,
			Out: f.InFlight, Waiting: f.Waiting,
		}
		if f.Hold != nil {
			got.HeldFrom, got.HeldTo = f.Hold.From.UTC(), utc(f.Hold.Until)
		}
		for _, b := range f.Barred {
			got.Barred += fmt.Sprintf("%s until %v ", b.WorkerID, b.Until.UTC())
		}
		now, p := x.m.seen(c), x.m.policy(c)
		sum := now.calls.sum(*p.window, x.now)
		want := shownCircuit{
			State: now.state, Cause: now.cause, Generation: now.generation, Since: now.since, OpenUntil: now.openUntil, OpenFor: now.openFor,
			Observed: sum.observed, Failed: sum.failed, Slow: sum.slow, Probes: now.passed, Wave: now.wave, WaveDone: now.waveDone,
			Out: len(x.m.leases(c)), Waiting: x.m.waiting(c),
		}
		if now.since.IsZero() {
			got.Since = time.Time{} // it stands as it was made, by the database's own clock
		}
		if now.hold != nil {
			want.HeldFrom, want.HeldTo = now.hold.from, now.hold.until
		}
		for _, w := range []string{"w1", "w2", "w3"} {
			witness := c.workers[w]
			if witness == nil {
				continue
			}
			if witness.calls.sum(*p.window, x.now).failed > 0 {
				want.Failing++
			}
			if witness.barred.After(x.now) {
				want.Barred += fmt.Sprintf("%s until %v ", w, witness.barred)
			}
		}
		if got != want {
			x.t.Fatalf("S11: circuit %s at %v is not what the model says:\n got %+v\nwant %+v", c.name, x.now, got, want)
		}
		x.checkEvents(c)
	}
}

// checkEvents compares what went on record since the last check.
func (x *circuitMachine) checkEvents(c *modelCircuit) {
	fresh := c.events[x.recorded[c]:]
	x.recorded[c] = len(c.events)
	found, err := x.server().CircuitEvents(context.Background(), x.ns, task.CircuitEventQuery{Circuit: c.name, Limit: len(fresh) + 1})
	x.ok(err)
	slices.Reverse(found)
	if len(found) > len(fresh) && len(c.events) > len(fresh) {
		found = found[1:] // compared before
	}
	var got []modelCircuitEvent
	for _, e := range found {
		g := modelCircuitEvent{
			At: e.At.UTC(), Generation: int(e.Generation), From: string(e.From), To: string(e.To), Cause: string(e.Cause), OpenUntil: utc(e.OpenUntil), Wave: e.Wave,
			Workers: strings.Join(e.Workers, ","), Actor: e.Actor, Observed: e.Observed, Failed: e.Failed, Slow: e.Slow,
		}
		if e.Hold != nil {
			g.HoldFrom, g.HoldUntil = e.Hold.From.UTC(), utc(e.Hold.Until)
		}
		got = append(got, g)
	}
	if !slices.Equal(got, fresh) {
		x.t.Fatalf("S11: the record of circuit %s is not what the model says:\n got %+v\nwant %+v", c.name, got, fresh)
	}
	for _, e := range fresh {
		x.reached[e.Cause]++
	}
}

type shownBehind struct {
	ID           int64
	Ready        bool
	WaitingFor   string
	WaitingUntil *time.Time
}

// checkReadiness compares the readiness table with the model, and with what claims are granted. Who became runnable at the
// same instant may go in any order: the model takes over which.
func (x *circuitMachine) checkReadiness() {
	ctx := context.Background()
	ids := []int64{} // of tasks that have not ended
	for id, step := range x.steps {
		if task := int64(id.Task()); !step.gone && !slices.Contains(ids, task) {
			ids = append(ids, task)
		}
	}
	s := x.server()
	rows, err := s.Cold.Query(ctx, `select workflow_step_id, ready_for_execution, coalesce(waiting_for, ''), waiting_until from step_readiness_at($1, null, $2) order by 1`, ids, x.now)
	x.ok(err)
	shown, err := pgx.CollectRows(rows, pgx.RowToStructByPos[shownBehind])
	x.ok(err)
	byID := map[int64]shownBehind{}
	for _, r := range shown {
		byID[r.ID] = r
	}
	var ready []int64
	for _, l := range x.m.lanes {
		queue, room := x.m.runnable(l), 1<<20
		word, until := "", time.Time{}
		if l.circuit != nil {
			if n, bounded := x.m.room(l.circuit); bounded {
				room = n
			}
			word, until = x.m.keeps(l.circuit)
		}
		slices.SortStableFunc(queue, func(a, b *behindStep) int {
			first := 0
			if a, b := byID[a.id].Ready, byID[b.id].Ready; a != b {
				if first = 1; a {
					first = -1
				}
			}
			return cmp.Or(a.runnableAt.Compare(b.runnableAt), first)
		})
		for k, step := range queue {
			got := byID[step.id]
			if got.Ready != (k < room) {
				x.t.Fatalf("S13: step %d, number %d of %d in its lane, is ready: %v; its circuit has room for %d", step.id, k+1, len(queue), got.Ready, room)
			}
			if got.Ready {
				ready = append(ready, step.id)
				continue
			}
			x.reached["kept by "+word]++
			if got.WaitingFor != word || !utc(got.WaitingUntil).Equal(until) {
				x.t.Fatalf("S11: step %d waits for %s until %v; the model says %s until %v", step.id, got.WaitingFor, got.WaitingUntil, word, until)
			}
		}
	}
	for _, r := range shown {
		if r.Ready && !slices.Contains(ready, r.ID) {
			x.t.Fatalf("S13: step %d is called ready and cannot run", r.ID)
		}
	}
	x.checkPreview(s, ready)
}

// checkPreview claims everything, once for each lane that may be the one that takes from its circuit, and undoes it.
func (x *circuitMachine) checkPreview(s *store.Store, ready []int64) {
	granted := map[int64]bool{}
	for turn := range 2 {
		c := &store.Claim{Sessions: []store.SessionFence{x.watcher}}
		for i, l := range x.m.lanes {
			c.Lanes = append(c.Lanes, store.LaneWant{LaneID: l.id, CircuitID: x.ids32[l.circuit], Slots: slices.Repeat([]int32{x.watcher.SessionID}, 60)})
			if l.circuit != nil && (i == 0 || x.m.lanes[i-1].circuit != l.circuit) {
				c.Circuits = append(c.Circuits, store.CircuitWant{CircuitID: x.ids32[l.circuit], Exclusive: true, LaneID: l.id})
			} else if l.circuit != nil && turn == 1 {
				c.Circuits[len(c.Circuits)-1].LaneID = l.id
			}
		}
		grants, err := s.Preview(context.Background(), x.ns, c, nil)
		x.ok(err)
		for _, g := range grants {
			granted[int64(g.Step.Token.Step)] = true
		}
	}
	// As often as a lane has steps of an instant: which of them go is not said.
	place := func(id int64) string {
		s := x.steps[task.StepID(id)]
		return fmt.Sprint(s.lane.id, " ", s.runnableAt)
	}
	count := map[string]int{}
	for id := range granted {
		count[place(id)]++
	}
	for _, id := range ready {
		count[place(id)]--
	}
	for where, n := range count {
		if n != 0 {
			x.t.Fatalf("S13: of lane and instant %s, claims are granted %d steps more than are called ready", where, n)
		}
	}
}
