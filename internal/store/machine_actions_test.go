package store_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// drawClaim asks for up to three steps of some lanes.
func (x *machine) drawClaim() *store.Claim {
	c := &store.Claim{Sessions: append([]store.SessionFence{x.dead}, x.sessions...)}
	slices.SortFunc(c.Sessions, func(a, b store.SessionFence) int { return cmp.Compare(a.SessionID, b.SessionID) })
	for _, lane := range some(x, "lanes", len(x.lanes), x.lanes) {
		want := store.LaneWant{LaneID: lane}
		for range pick(x, "slots", 1, 2, 3) {
			to := pick(x, "session", x.sessions...)
			if x.chance("dead session", 5) {
				to = x.dead
			}
			want.Slots = append(want.Slots, to.SessionID)
		}
		c.Lanes = append(c.Lanes, want)
	}
	known := x.pauses()
	if x.chance("knows no better", 15) {
		known = x.before
	}
	x.choose(c, known)
	return c
}

func (x *machine) claimSome(t *rapid.T) {
	ctx := x.act(t)
	claim := x.drawClaim()
	grants, _, err := x.s.Claim(ctx, x.ns, claim)
	x.ok(err)
	x.granted(claim, grants)
}

// granted checks that each lane gave what became runnable first, as much as was asked for, and grants it in the model.
func (x *machine) granted(claim *store.Claim, grants []store.Grant) {
	x.t.Helper()
	fence := func(id int32) (f store.SessionFence, alive bool) {
		at := slices.IndexFunc(x.sessions, func(s store.SessionFence) bool { return s.SessionID == id })
		if at >= 0 && !x.knows(claim, id) {
			x.reached["kept from who does not know of a pause"]++
			at = -1
		}
		if at < 0 {
			return f, false
		}
		return x.sessions[at], true
	}
	for _, want := range claim.Lanes {
		queue := x.m.find(func(s *modelStep) bool { return s.lane == want.LaneID && x.m.runnable(s) })
		slices.SortStableFunc(queue, func(a, b *modelStep) int { return a.runnableAt.Compare(b.runnableAt) })
		expected, anyDead := 0, false
		for k := range min(len(want.Slots), len(queue)) {
			if _, alive := fence(want.Slots[k]); alive {
				expected++
			} else {
				anyDead = true
			}
		}
		var got []store.Grant
		for _, g := range grants {
			if g.LaneID == want.LaneID {
				got = append(got, g)
			}
		}
		same(x, fmt.Sprintf("S13: grants of lane %d", want.LaneID), len(got), expected)
		if anyDead && expected > 0 {
			x.reached["granted past a dead session"]++
		}
		for _, g := range got {
			s := x.stepOf(g.Step.Token.Step)
			if s.lane != want.LaneID || !x.m.runnable(s) {
				x.t.Fatalf("step %v was granted, and is not runnable in lane %d", g.Step.Token.Step, want.LaneID)
			}
			if !anyDead && s.runnableAt.After(queue[expected-1].runnableAt) {
				x.t.Fatalf("step %v, runnable since %v, was granted before one that is since %v", g.Step.Token.Step, s.runnableAt, queue[expected-1].runnableAt)
			}
		}
		for _, g := range got {
			f, alive := fence(g.SessionID)
			if !alive {
				x.t.Fatalf("S10: session %d was granted a step", g.SessionID)
			}
			if _, is := x.m.pausedUntil(x.handlerOf(g.LaneID)); is {
				x.t.Fatalf("S15: step %v of a paused handler was granted", g.Step.Token.Step)
			}
			x.hold(g, f)
		}
	}
}

// hold grants a step in the model and compares what its worker is told.
func (x *machine) hold(g store.Grant, f store.SessionFence) {
	x.t.Helper()
	s, r := x.stepOf(g.Step.Token.Step), g.Step
	if s.place == isWaiting && s.failures > 0 {
		x.reached["granted a due retry"]++
	}
	d := x.m.grant(s, g.SessionID, f.Beats, f.DeliveryTimeout)
	x.issued = append(x.issued, issued{d, r.Token})
	same(x, "dispatch", r.Dispatch, d.number)
	same(x, "dispatch of the token", int(r.Token.Dispatch), d.number)
	same(x, "attempt", r.Attempt, s.attempts+1)
	same(x, "retry_limit", r.RetryLimit, s.policy.limit)
	same(x, "lease", r.LeaseDuration, s.lease.duration)
	same(x, "timeout", r.RunTimeout, s.policy.runTimeout)
	same(x, "expiry", r.LeaseExpiresAt.Equal(s.lease.until), true)
	same(x, "checkpoint", r.Checkpoint, s.checkpoint)
	x.sameTime("stop", r.Deadline, instant(s.lease.stop))
	same(x, "dependencies", len(r.Dependencies), len(s.parents))
	for i, p := range s.parents {
		parent := s.task.steps[p-1]
		same(x, "dependency", r.Dependencies[i], task.DependencyResult{Name: parent.name, Results: cmpOr(parent.results, "{}")})
	}
	same(x, "a previous failure", r.PreviousFailure != nil, s.failure != nil)
	if f := s.failure; f != nil {
		same(x, "its code", r.PreviousFailure.ErrorCode, f.code)
		same(x, "its outcome", string(r.PreviousFailure.Outcome), f.outcome)
		same(x, "its dispatch", r.PreviousFailure.Dispatch, f.dispatch)
		same(x, "its attempt", r.PreviousFailure.Attempt, f.attempt)
	}
}

func (x *machine) sameTime(what string, got, want *time.Time) {
	if (got == nil) != (want == nil) || got != nil && !got.Equal(*want) {
		x.t.Helper()
		x.t.Fatalf("%s: the store says %v, the model %v", what, got, want)
	}
}

// running are the tokens of the leases that stand.
func (x *machine) running() []issued {
	return slices.DeleteFunc(slices.Clone(x.issued), func(i issued) bool {
		return i.step.task.purged || i.step.lease == nil || i.step.lease.dispatch != i.dispatch
	})
}

func (x *machine) drawOutcome() modelOutcome {
	o := modelOutcome{kind: pick(x, "outcome", "success", "success", "success", "retryable_failure", "retryable_failure", "retryable_failure", "permanent_failure")}
	if o.kind == "success" {
		o.results = pick(x, "results", "{}", `{"a":1}`)
	} else {
		o.code = pick(x, "code", "", "BUSY", "FINAL")
	}
	if o.kind == "retryable_failure" {
		o.skip = x.chance("skip", 25)
		switch o.source = pick(x, "hint", "", "", "retry_after", "retry_at", "header_seconds", "header_date", "header_unreadable"); o.source {
		case "retry_after", "header_seconds":
			o.after = ptr(pick(x, "after", 0, sec, 1500*ms, 100*time.Hour))
		case "retry_at", "header_date":
			o.at = ptr(x.now.Add(pick(x, "at", -5*sec, 0, 3*sec, 100*time.Hour)))
		}
	}
	o.digest = fmt.Sprint(o.kind, o.results, o.code, o.skip, o.source, str(o.after), str(o.at))
	return o
}

func str[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

func (o modelOutcome) report(token task.Token) task.Report {
	return task.Report{
		Token: token, Outcome: task.Outcome(o.kind), Results: o.results, Failure: task.Failure{ErrorCode: o.code}, Skip: o.skip,
		Hint: task.Hint{Source: task.DelaySource(o.source), After: o.after, At: o.at}, Digest: machineDigest(o.digest),
	}
}

// reportSome reports outcomes of running steps.
func (x *machine) reportSome(t *rapid.T) { x.report(t, some(x, "tokens", 3, x.running()), nil) }

// flush reports outcomes and claims in the same transaction.
func (x *machine) flush(t *rapid.T) {
	x.act(t)
	x.report(t, some(x, "tokens", 3, x.running()), x.drawClaim())
}

// reportStale reports under any tokens that were ever handed out, most of whose leases are gone.
func (x *machine) reportStale(t *rapid.T) {
	x.act(t)
	of := slices.DeleteFunc(slices.Clone(x.issued), func(i issued) bool { return i.step.welcome != i.dispatch })
	if len(of) == 0 || x.chance("any", 40) {
		of = x.issued
	}
	x.report(t, some(x, "tokens", 2, of), nil)
}

func (x *machine) report(t *rapid.T, tokens []issued, claim *store.Claim) {
	ctx := x.act(t)
	if len(tokens) == 0 {
		t.Skip("nothing to report")
	}
	outcomes, reports := make([]modelOutcome, len(tokens)), make([]task.Report, len(tokens))
	for i, d := range tokens {
		outcomes[i] = x.drawOutcome()
		reports[i] = outcomes[i].report(d.token)
	}
	f, err := x.s.Turn(ctx, x.ns, nil, reports, claim)
	x.ok(err)
	x.learnJitter(tokens, func(i int) verdict {
		if f.Answers[i].Late {
			return lost // decided below
		}
		same(x, "S4: verdict of a running step's report", x.m.report(tokens[i].dispatch, outcomes[i]), accepted)
		x.reached["report accepted"]++
		return accepted
	})
	for i, a := range f.Answers {
		if !a.Late {
			x.compareReported(tokens[i].dispatch, a.Reported, false)
		}
	}
	if claim != nil {
		x.granted(claim, f.Grants)
	}
	x.heed(f.Change)
	for i, a := range f.Answers {
		if a.Late {
			x.reportLate(tokens[i], outcomes[i], &reports[i])
		}
	}
}

// reportLate reports under a token whose lease is gone.
func (x *machine) reportLate(d issued, o modelOutcome, r *task.Report) {
	x.t.Helper()
	x.m.woken = map[int32]bool{}
	s := d.step
	lostIt, reopens := s.lost > 0 && s.free["undelivered"]+s.free["released"] == 0, s.place == isParked
	a, change, err := x.s.ReportLate(context.Background(), r)
	x.ok(err)
	got := accepted
	switch {
	case a.Refused != nil:
		got = verdict(a.Refused.Reason)
	case a.Reported.AlreadyRecorded:
		got = repeated
	}
	x.learnJitter([]issued{d}, func(int) verdict {
		want := x.m.report(d.dispatch, o)
		same(x, "S4: verdict of a late report", got, want)
		return want
	})
	x.reached["report "+string(got)]++
	if got == accepted {
		x.reached["late "+map[bool]string{true: "success", false: "failure"}[o.kind == "success"]+" accepted"]++
		if lostIt {
			x.reached["late report of a lost lease accepted"]++
		}
		if reopens {
			x.reached["late report of a poisoned step accepted"]++
		}
	}
	if a.Reported != nil {
		x.compareReported(d.dispatch, a.Reported, got == repeated)
	}
	x.heed(change)
}

// learnJitter does reports in the model, and compares the delay of each failure that was taken with the row that stores it.
func (x *machine) learnJitter(tokens []issued, do func(int) verdict) {
	x.t.Helper()
	for i, d := range tokens {
		if do(i) != accepted || d.fail == nil {
			continue
		}
		x.compareFailure(d.dispatch)
	}
}

// compareFailure holds the stored row of a dispatch's failure against the model, and takes its jitter over.
func (x *machine) compareFailure(d *dispatch) {
	x.t.Helper()
	f := d.fail
	var (
		outcome, source, code    string
		attempt, failures, epoch int
		base, jitter             *time.Duration
		ended                    time.Time
		next                     *time.Time
		clamped                  bool
	)
	err := x.s.Hot.QueryRow(context.Background(), `select outcome::text, coalesce(delay_source::text, ''), coalesce(error_code, ''), attempt, failures, epoch,
			base_delay, jitter, ended_at, next_retry_at, delay_clamped
		from step_failure where task_id = $1 and step_no = $2 and dispatch = $3`, d.step.task.id, d.step.no, d.number).
		Scan(&outcome, &source, &code, &attempt, &failures, &epoch, &base, &jitter, &ended, &next, &clamped)
	x.ok(err)
	switch {
	case f.next.IsZero():
		x.reached["failed for good: "+d.step.parkReason]++
	case f.clamped:
		x.reached["clamped"]++
	}
	if d.step.free["skipped"] > 0 {
		x.reached["skipped"]++
	}
	same(x, "outcome", outcome, f.outcome)
	same(x, "S6: delay_source", source, f.source)
	same(x, "error_code", code, f.code)
	same(x, "S5: attempt", attempt, f.attempt)
	same(x, "failures", failures, f.failures)
	same(x, "epoch", epoch, d.step.epoch)
	same(x, "recorded_at", ended.Equal(f.at), true)
	same(x, "S6: clamped", clamped, f.clamped)
	if f.next.IsZero() {
		same(x, "a delay of a step that failed for good", base != nil || jitter != nil || next != nil, false)
		return
	}
	if base == nil || jitter == nil || next == nil {
		x.t.Fatalf("S6: dispatch %d of step %d has no delay", d.number, d.step.no)
	}
	same(x, "S6: base_delay", *base, f.base)
	limit := time.Duration(d.step.policy.jitter * float64(f.base))
	if f.requested != nil {
		limit = 0
	}
	if *jitter < 0 || *jitter > limit+time.Microsecond {
		x.t.Fatalf("S6: jitter %v is outside of [0, %v]", *jitter, limit)
	}
	f.learnJitter(d.step, *jitter)
	x.sameTime("S6: next_retry_at", next, &f.next)
}

// told is what the answer to an accepted report says of the step: sent again, the report gets the same answer.
type told struct {
	state                             string
	attempts, dispatches, lost, epoch int
	parked                            bool
}

// compareReported holds the answer to a report against the step as the model has it; again, against the first answer.
func (x *machine) compareReported(d *dispatch, r *task.Reported, again bool) {
	x.t.Helper()
	s := d.step
	if !again {
		d.told = told{s.state(), s.attempts, s.dispatches, s.lost, s.epoch, s.place == isParked}
	}
	same(x, "answer: step", int64(r.Step), s.task.id+int64(s.no))
	same(x, "answer", told{string(r.State), r.Attempts, r.Dispatches, r.LostLeases, r.Epoch, r.Parked}, d.told)
	same(x, "answer: retry_limit", r.RetryLimit, s.policy.limit)
	same(x, "answer: retry_eligible", r.RetryEligible, x.m.runnable(s))
	if f := d.fail; f != nil {
		x.sameTime("answer: next_retry_at", r.NextRetryAt, instant(f.next))
		same(x, "answer: delay_source", string(r.DelaySource), f.source)
		same(x, "answer: clamped", r.DelayClamped, f.clamped)
		if !f.next.IsZero() {
			same(x, "answer: applied delay", *r.AppliedDelay, f.base+f.jitter)
		}
	}
	if !again {
		x.sameTime("answer: recorded_at", &r.RecordedAt, &x.now)
	}
}

// heartbeat extends leases, some of which may be gone.
func (x *machine) heartbeat(t *rapid.T) {
	ctx := x.act(t)
	tokens := some(x, "tokens", 3, x.running())
	if x.chance("stale", 20) {
		tokens = append(tokens, some(x, "stale tokens", 1, x.issued)...)
	}
	if len(tokens) == 0 {
		t.Skip("nothing runs")
	}
	var beats []store.Beat
	seen := map[task.Token]bool{}
	for _, d := range tokens {
		if seen[d.token] {
			continue
		}
		seen[d.token] = true
		b := store.Beat{Token: d.token}
		if x.chance("checkpoint", 30) {
			x.serial++
			b.Checkpoint = fmt.Sprintf(`{"at":%d}`, x.serial)
		}
		beats = append(beats, b)
	}
	extended, err := x.s.Heartbeat(ctx, x.ns, beats)
	x.ok(err)
	for _, d := range tokens {
		if !seen[d.token] {
			continue
		}
		seen[d.token] = false
		at := slices.IndexFunc(beats, func(b store.Beat) bool { return b.Token == d.token })
		e, held := extended[d.token.Nonce]
		stands := !d.step.task.purged && d.step.lease != nil && d.step.lease.dispatch == d.dispatch
		same(x, "a lease is held", held, stands)
		if !stands {
			continue
		}
		x.m.heartbeat(d.step, beats[at].Checkpoint)
		l := d.step.lease
		x.sameTime("until", &e.Until, &l.until)
		x.sameTime("stop", e.StopAt, instant(l.stop))
		if l.runTimeout > 0 {
			x.sameTime("run until", e.RunUntil, ptr(l.confirmed.Add(l.runTimeout)))
		}
	}
}
