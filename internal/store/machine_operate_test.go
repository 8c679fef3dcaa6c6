package store_test

import (
	"cmp"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// held names a lease as the sweeps do.
func (i issued) held(delay time.Duration) store.HeldLease {
	return store.HeldLease{Step: i.token.Step, Nonce: i.token.Nonce, LaneID: i.step.lane, Delay: delay}
}

// expire sweeps: the candidates are the leases whose time is up, and of all leases only those are ended.
func (x *machine) expire(t *rapid.T) {
	ctx := x.act(t)
	found, err := x.s.ExpiredLeases(ctx, 1000)
	x.ok(err)
	due := map[task.StepID]bool{}
	for _, i := range x.running() {
		if x.m.expiry(i.step.lease) != "" {
			due[i.token.Step] = true
		}
	}
	same(x, "expired leases", len(found), len(due))
	for _, l := range found {
		same(x, "expired", due[l.Step], true)
	}
	if x.chance("offer all", 50) {
		found = nil
		for _, i := range x.running() {
			found = append(found, i.held(0))
		}
	}
	if len(found) == 0 {
		t.Skip("nothing runs")
	}
	leases := x.running()
	ended, change, err := x.s.Expire(ctx, x.ns, found)
	x.ok(err)
	got := map[task.Token]store.Ended{}
	for _, e := range ended {
		got[e.Token] = e
	}
	for _, i := range leases {
		s := i.step
		outcome := x.m.expiry(s.lease)
		e, was := got[i.token]
		same(x, "ended", was, outcome != "")
		lostBefore := s.lost
		switch outcome {
		case "":
			continue
		case "timed_out":
			x.reached["run timed out"]++
			x.m.conclude(s, modelOutcome{kind: outcome, code: "TIMED_OUT"})
			x.compareFailure(i.dispatch)
		case "deadline_exceeded":
			x.reached["deadline ended a run"]++
			x.m.conclude(s, modelOutcome{kind: outcome, code: "DEADLINE_EXCEEDED"})
			x.compareFailure(i.dispatch)
		default:
			x.m.comeBack(s, outcome, 0)
			if s.lost > lostBefore {
				outcome = "lost_lease"
			}
			x.reached[map[string]string{"lost_lease": "lost lease", "undelivered": "undelivered"}[outcome]]++
			if s.place == isParked {
				x.reached["poisoned"]++
			}
		}
		same(x, "outcome", string(e.Outcome), outcome)
		same(x, "S5: failed for good", e.Parked, s.place == isParked)
	}
	x.heed(change)
}

// lose lets a confirmed lease run out.
func (x *machine) lose(t *rapid.T) {
	ctx := x.act(t)
	tokens := some(x, "token", 1, x.running())
	if len(tokens) == 0 {
		t.Skip("nothing runs")
	}
	s := tokens[0].step
	_, err := x.s.Heartbeat(ctx, x.ns, []store.Beat{{Token: tokens[0].token}})
	x.ok(err)
	x.m.heartbeat(s, "")
	x.now = s.lease.until
	x.m.now = x.now
	x.expire(t)
}

// giveBack ends leases without a result: released by the worker, or never delivered to it.
func (x *machine) giveBack(t *rapid.T) {
	ctx := x.act(t)
	tokens := some(x, "tokens", 3, x.running())
	if len(tokens) == 0 {
		t.Skip("nothing runs")
	}
	outcome := pick(x, "outcome", "released", "released", "undelivered")
	stays := func(i issued) bool { return outcome == "undelivered" && !i.step.lease.confirmed.IsZero() }
	var leases []store.HeldLease
	delays := make([]time.Duration, len(tokens))
	for i, d := range tokens {
		if outcome == "released" {
			delays[i] = pick(x, "delay", 0, 0, 2*sec)
		}
		leases = append(leases, d.held(delays[i]))
	}
	// Whose lease is gone is passed by.
	for _, d := range some(x, "any token", 1, x.issued) {
		if d.step.lease == nil || d.step.lease.dispatch != d.dispatch {
			leases = append(leases, d.held(0))
		}
	}
	ended, change, err := x.s.GiveBack(ctx, x.ns, leases, task.Outcome(outcome))
	x.ok(err)
	back := 0
	for i, d := range tokens {
		if stays(d) {
			continue
		}
		back++
		x.m.comeBack(d.step, outcome, delays[i])
		x.reached[outcome]++
		if delays[i] > 0 {
			x.reached["released with delay"]++
		}
	}
	same(x, "given back", len(ended), back)
	x.heed(change)
}

func (x *machine) anyTask(where func(*modelTask) bool) *modelTask {
	var of []*modelTask
	for _, t := range x.m.tasks {
		if where(t) {
			of = append(of, t)
		}
	}
	if len(of) == 0 {
		x.t.Skip("no such task")
	}
	return pick(x, "task", of...)
}

// anyStep prefers steps in error.
func (x *machine) anyStep() *modelStep {
	steps := x.m.find(func(s *modelStep) bool { return s.task.noted == "error" && s.place == isParked })
	if len(steps) == 0 || x.chance("any in error", 50) {
		steps = x.m.find(func(s *modelStep) bool { return s.state() == "error" })
	}
	if len(steps) == 0 || x.chance("any step", 20) {
		steps = x.m.steps()
	}
	if len(steps) == 0 {
		x.t.Skip("no step")
	}
	return pick(x, "step", steps...)
}

var operator = store.Act{Actor: "somebody", Reason: "a reason"}

func (x *machine) cancel(t *rapid.T) {
	ctx := x.act(t)
	mt := x.anyTask(func(*modelTask) bool { return true })
	var leases []issued
	for _, i := range x.running() {
		if i.step.task == mt {
			leases = append(leases, i)
		}
	}
	answer, change, err := x.s.CancelTask(ctx, task.ID(mt.id), operator)
	refused, steps, ended := x.m.cancel(mt)
	same(x, "cancel: refusal", x.reason(err), refused)
	if refused != "" {
		return
	}
	x.reached["task cancelled"]++
	same(x, "cancel: steps", answer.Steps, steps)
	same(x, "cancel: leases", answer.Leases, ended)
	same(x, "cancel: state", string(answer.Task.State), "cancelled")
	same(x, "cancel: revoked", len(change.Revoked), len(leases))
	for _, r := range change.Revoked {
		same(x, "cancel: revoked", slices.ContainsFunc(leases, func(i issued) bool { return i.token == r.Token }), true)
	}
}

func (x *machine) retry(t *rapid.T) {
	ctx := x.act(t)
	s := x.anyStep()
	v, change, err := x.s.RetryStep(ctx, task.ID(s.task.id).Step(s.no), operator)
	refused := x.m.mayOperate(s)
	same(x, "retry: refusal", x.reason(err), refused)
	if refused == "" {
		x.reached["retried"]++
		x.m.retry(s, 0)
		same(x, "retry: state", string(v.State), "pending")
		x.heed(change)
	}
}

// endStep resolves or completes a step.
func (x *machine) endStep(t *rapid.T) {
	ctx := x.act(t)
	s := x.anyStep()
	id := task.ID(s.task.id).Step(s.no)
	how, results := pick(x, "how", "resolved_manually", "complete"), ""
	var (
		v      task.StepView
		change store.Change
		err    error
	)
	if how == "complete" {
		results = `{"by":"hand"}`
		v, change, err = x.s.CompleteStep(ctx, id, results, operator)
	} else {
		v, change, err = x.s.ResolveStep(ctx, id, operator)
	}
	refused := x.m.mayOperate(s)
	same(x, how+": refusal", x.reason(err), refused)
	if refused == "" {
		x.reached[map[string]string{"complete": "completed by hand", "resolved_manually": "resolved"}[how]]++
		x.m.endByOperator(s, how, results)
		same(x, how+": state", string(v.State), how)
		x.heed(change)
	}
}

func (x *machine) bulkRetry(t *rapid.T) {
	ctx := x.act(t)
	r := task.BulkRetry{ParkedOnly: x.chance("parked only", 50), Spread: pick(x, "spread", 0, 9*sec), Actor: "somebody"}
	steps := x.m.find(func(s *modelStep) bool { return s.place == isParked || s.state() == "error" && !r.ParkedOnly })
	slices.SortFunc(steps, func(a, b *modelStep) int { return cmp.Or(cmp.Compare(a.task.id, b.task.id), cmp.Compare(a.no, b.no)) })
	n, _, more, change, err := x.s.BulkRetrySteps(ctx, x.ns, r, store.StepKey{})
	x.ok(err)
	same(x, "bulk retry: steps", n, len(steps))
	same(x, "bulk retry: more", more, false)
	for i, s := range steps {
		wait := r.Spread * time.Duration(i) / time.Duration(len(steps))
		x.m.retry(s, wait.Truncate(time.Microsecond))
	}
	x.heed(change)
}

// settle does what is done after the commit of every verb that said so.
func (x *machine) settle(t *rapid.T) {
	ctx := x.act(t)
	mt := x.anyTask(func(mt *modelTask) bool { return mt.mayEnd })
	before := mt.noted
	x.m.settle(mt)
	change, err := x.s.Settle(ctx, task.ID(mt.id))
	x.ok(err)
	same(x, "settle: changed", len(change.Tasks) > 0, mt.noted != before)
	if mt.noted != before {
		x.reached["task in error"]++
	}
}

// tick looks for what time has brought about, and for ends that nobody noted.
func (x *machine) tick(t *rapid.T) {
	ctx := x.act(t)
	tick, err := x.s.Tick(ctx, store.Ask{Leases: true})
	x.ok(err)
	found, err := x.s.Unsettled(ctx)
	x.ok(err)
	var unsettled []int64
	for _, mt := range x.m.tasks {
		if !mt.purged && mt.noted == "" && mt.anyParked() && !mt.canRun() {
			unsettled = append(unsettled, mt.id)
		}
	}
	same(x, "tick: unsettled", len(found), len(unsettled))
	for _, id := range found {
		same(x, "tick: unsettled", slices.Contains(unsettled, int64(id)), true)
	}
	same(x, "tick: parked", tick.Parked, slices.ContainsFunc(x.m.tasks, func(mt *modelTask) bool { return !mt.purged && mt.anyParked() }))
	same(x, "tick: overdue", tick.Overdue, len(x.m.overdue()) > 0)
	var next time.Time
	for _, i := range x.running() {
		l := i.step.lease
		for _, at := range []time.Time{l.until, l.stop, l.runEnd()} {
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	x.sameTime("tick: next expiry", tick.ExpiresAt, instant(next))
}

func (l *modelLease) runEnd() time.Time {
	if l.confirmed.IsZero() || l.runTimeout == 0 {
		return time.Time{}
	}
	return l.confirmed.Add(l.runTimeout)
}

// enforce parks what still waits after a deadline.
func (x *machine) enforce(t *rapid.T) {
	ctx := x.act(t)
	found, err := x.s.DueDeadlines(ctx, 1000)
	x.ok(err)
	same(x, "due deadlines", len(found), len(x.m.overdue()))
	if len(found) == 0 {
		t.Skip("none is due")
	}
	d := pick(x, "deadline", found...)
	parked := x.m.enforce(modelDeadline{x.deadlineAt(d), x.task(int64(d.TaskID)), d.StepNo})
	change, err := x.s.EnforceDeadline(ctx, d)
	x.ok(err)
	same(x, "deadline: it parked", len(change.Tasks) > 0, parked > 0)
	x.reached["deadline parked a waiting step"] += parked
	x.heed(change)
}

// deadlineAt finds the model's key of a deadline: equal instants need not be equal times.
func (x *machine) deadlineAt(d store.Deadline) time.Time {
	for k := range x.m.deadlines {
		if k.task.id == int64(d.TaskID) && k.no == d.StepNo && k.due.Equal(d.DueAt) {
			return k.due
		}
	}
	x.t.Fatalf("the model knows no deadline %+v", d)
	return time.Time{}
}

func (x *machine) purge(t *rapid.T) {
	ctx := x.act(t)
	mt := x.anyTask(func(*modelTask) bool { return true })
	_, err := x.s.PurgeTask(ctx, task.ID(mt.id), operator)
	refused := x.m.purge(mt)
	same(x, "purge: refusal", x.reason(err), refused)
	if refused == "" {
		x.reached["task purged"]++
	}
	if refused == "" && x.keys[mt.key] == mt {
		delete(x.keys, mt.key)
	}
}

// session takes a session over, which fences off the server that had it.
func (x *machine) session(t *rapid.T) {
	x.act(t)
	x.sessions[0] = x.open("beats", true)
}
