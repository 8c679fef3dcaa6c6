package history

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// taskModel is a task as the replay of its steps leaves it. Step n stands at n-1.
type taskModel struct {
	row      *taskRow
	steps    []*stepModel
	parents  [][]int32
	standing [][]placeRow
	state    string
}

func (t *taskModel) step(no int) *stepModel {
	if no < 1 || no > len(t.steps) {
		return nil
	}
	return t.steps[no-1]
}

// checkTasks replays every task: the cursors go over them side by side, by task.
func (c *checker) checkTasks(ctx context.Context, tx pgx.Tx) error {
	tasks, err := openCursor[taskRow](ctx, tx, "tasks")
	if err != nil {
		return err
	}
	steps, err := openCursor[stepRow](ctx, tx, "steps")
	if err != nil {
		return err
	}
	events, err := openCursor[event](ctx, tx, "events")
	if err != nil {
		return err
	}
	places, err := openCursor[placeRow](ctx, tx, "places")
	if err != nil {
		return err
	}
	failures, err := openCursor[failureRow](ctx, tx, "failures")
	if err != nil {
		return err
	}
	for {
		row, err := tasks.peek(ctx)
		if err != nil {
			return err
		}
		last := row == nil
		if last {
			row = &taskRow{TaskID: math.MaxInt64}
		}
		task := &taskModel{row: &taskRow{}}
		*task.row = *row
		tasks.at++
		replayed := !last && c.checkTask(task.row)
		if err := steps.of(ctx, row.TaskID, func(s *stepRow) int64 { return s.TaskID },
			func(s *stepRow) { c.orphan(s.TaskID, s.StepNo, "a step") },
			func(s *stepRow) { c.addStep(task, s) }); err != nil {
			return err
		}
		if err := events.of(ctx, row.TaskID, func(e *event) int64 { return e.TaskID },
			func(e *event) { c.orphan(e.TaskID, e.StepNo, "an event") },
			func(e *event) { c.addEvent(task, e, replayed) }); err != nil {
			return err
		}
		if err := places.of(ctx, row.TaskID, func(p *placeRow) int64 { return p.TaskID },
			func(p *placeRow) { c.orphan(p.TaskID, p.StepNo, "a row in "+string(p.Place)) },
			func(p *placeRow) { c.addPlace(task, p, replayed) }); err != nil {
			return err
		}
		if err := failures.of(ctx, row.TaskID, func(f *failureRow) int64 { return f.TaskID },
			func(f *failureRow) { c.orphan(f.TaskID, f.StepNo, "a failure") },
			func(f *failureRow) { c.addFailure(task, f, replayed) }); err != nil {
			return err
		}
		if last {
			return nil
		}
		if replayed {
			c.finish(task)
		}
	}
}

// orphan tells of a row whose task nobody knows.
func (c *checker) orphan(taskID int64, stepNo int, what string) {
	if c.daysGone || c.isDropped(taskID) {
		return
	}
	c.r.add(Violation{Invariant: "S14", TaskID: taskID, StepID: taskID + int64(stepNo), Message: what + " of a task that is neither stored nor in the history"})
}

// checkTask looks at a task as a whole and tells whether its steps can be replayed.
func (c *checker) checkTask(t *taskRow) bool {
	violate := func(invariant, format string, args ...any) {
		c.r.add(Violation{Invariant: invariant, TaskID: t.TaskID, Message: fmt.Sprintf(format, args...)})
	}
	isGone := t.Purges > 0 || c.isDropped(t.TaskID)
	c.journals.sawTask(t.TaskID, t.Submits > 0, isGone)
	switch {
	case t.Submits > 1:
		violate("S7", "submitted %d times", t.Submits)
	case isGone && (t.IsStored || t.EndState != nil):
		violate("S14", "stands although it was purged")
	case t.Submits > 0 && !t.IsStored && !isGone:
		violate("S7", "was submitted and is gone")
	case t.Submits == 0 && t.IsStored && !c.daysGone:
		violate("S14", "is stored and nobody submitted it")
	case !t.IsStored && !isGone && !c.daysGone:
		violate("S14", "is in the history and was never submitted")
	}
	if t.Submits == 0 && t.IsStored && c.daysGone {
		c.r.Skipped++
	}
	if t.IsStored && t.Submits > 0 {
		c.r.Tasks++
		if t.SubmittedSteps != t.StepCount {
			violate("S14", "submitted with %d steps, stored with %d", t.SubmittedSteps, t.StepCount)
		}
		return !isGone
	}
	return false
}

func (c *checker) addStep(t *taskModel, s *stepRow) {
	if s.StepNo != len(t.steps)+1 {
		c.r.add(Violation{Invariant: "S14", TaskID: s.TaskID, StepID: s.TaskID + int64(s.StepNo), Message: fmt.Sprintf("follows step %d of its task", len(t.steps))})
		return
	}
	m := &stepModel{epoch: 1, circuit: s.CircuitID, isPaused: s.IsPaused, policy: policy{
		retryLimit: s.RetryLimit, retryable: s.Retryable, maxLostLeases: s.MaxLostLeases, initial: s.Initial, multiplier: s.Multiplier,
		max: s.Max, jitter: s.Jitter, maxRetryAfter: s.MaxRetryAfter, nonRetryable: s.NonRetryable, maxElapsed: s.MaxElapsed,
		deadline: t.row.Deadline,
	}}
	if len(s.Parents) == 0 {
		m.place = ready
		if t.row.IsDeferred != nil && *t.row.IsDeferred {
			m.place, m.dueAt = backoff, t.row.NotBefore
		}
	}
	t.steps, t.parents, t.standing = append(t.steps, m), append(t.parents, s.Parents), append(t.standing, nil)
}

func (c *checker) addEvent(t *taskModel, e *event, replayed bool) {
	if !replayed {
		return
	}
	m := t.step(e.StepNo)
	if m == nil {
		c.r.add(Violation{Invariant: "S14", TaskID: e.TaskID, StepID: e.TaskID + int64(e.StepNo), Dispatch: e.Dispatch, Message: e.Kind + " of a step that its task does not have"})
		return
	}
	m.apply(c.replayer(e.TaskID, e.StepNo), e)
}

func (c *checker) replayer(taskID int64, stepNo int) *replayer {
	return &replayer{
		r: c.r,
		violate: func(dispatch int, invariant, format string, args ...any) {
			c.r.add(Violation{invariant, taskID, taskID + int64(stepNo), dispatch, fmt.Sprintf(format, args...)})
		},
		held: func(session int32, from, to time.Time) { c.heldBy[session] = append(c.heldBy[session], span{from, to}) },
		runs: func(circuit int32, r *run) { c.behind[circuit] = append(c.behind[circuit], r) },
		mayBeForgotten: func(dispatch int, isKnown bool) bool {
			return c.mayBeForgotten(runKey{taskID + int64(stepNo), dispatch}, isKnown)
		},
	}
}

func (c *checker) addPlace(t *taskModel, p *placeRow, replayed bool) {
	switch {
	case t.step(p.StepNo) != nil:
		t.standing[p.StepNo-1] = append(t.standing[p.StepNo-1], *p)
	case replayed || t.row.Purges > 0:
		c.r.add(Violation{Invariant: "S14", TaskID: p.TaskID, StepID: p.TaskID + int64(p.StepNo), Message: fmt.Sprintf("stands in %s and is no step of a stored task", p.Place)})
	}
}

// addFailure compares a stored failure with the event of it, and crosses that off.
func (c *checker) addFailure(t *taskModel, f *failureRow, replayed bool) {
	m := t.step(f.StepNo)
	if !replayed || m == nil {
		return
	}
	violate := c.replayer(f.TaskID, f.StepNo).violate
	e, known := m.failed[f.Dispatch]
	if !known {
		violate(f.Dispatch, "S14", "a %s is stored that the history does not have", f.Outcome)
		return
	}
	delete(m.failed, f.Dispatch)
	want := failureRow{
		f.TaskID, f.StepNo, f.Dispatch, e.Outcome, e.attempts, e.failures, e.lostLeases, e.Epoch, e.EventNo, sessionOf(&e.event), f.EndedAt,
		e.BaseDelay, e.Jitter, nil, e.DelaySource, f.ErrorCode,
	}
	if e.Outcome != "lost_lease" { // the history tells where it waits, the row when its failure may be retried
		want.NextRetryAt, want.ErrorCode = e.NextRetryAt, e.ErrorCode
	}
	if got, want := fmt.Sprint(deref(*f)), fmt.Sprint(deref(want)); got != want {
		violate(f.Dispatch, "S14", "the stored failure is %s, the history says %s", got, want)
	}
	if f.EndedAt.After(e.RecordedAt) {
		violate(f.Dispatch, "S6", "failed %s after it was recorded", f.EndedAt.Sub(e.RecordedAt))
	}
	if f.NextRetryAt != nil && f.BaseDelay != nil && f.Jitter != nil && !f.NextRetryAt.Equal(f.EndedAt.Add(micros(*f.BaseDelay+*f.Jitter))) {
		violate(f.Dispatch, "S6", "the retry is due %s after the failure, its delay is %s and its jitter %s", f.NextRetryAt.Sub(f.EndedAt),
			micros(*f.BaseDelay), micros(*f.Jitter))
	}
}

// deref makes a failure comparable as a text: pointers by what they point at.
func deref(f failureRow) []any {
	at := "never"
	if f.NextRetryAt != nil {
		at = f.NextRetryAt.UTC().Format(time.RFC3339Nano)
	}
	return []any{
		f.Outcome, "attempt", f.Attempt, "failures", f.Failures, "lost", f.LostLeases, "epoch", f.Epoch, "event", f.EventNo, "session", f.SessionID,
		"delay", micros(or(f.BaseDelay, -1)), "jitter", micros(or(f.Jitter, -1)), "retry", at, f.DelaySource, f.ErrorCode,
	}
}

// finish checks what only the whole task shows.
func (c *checker) finish(t *taskModel) {
	if len(t.steps) != t.row.StepCount {
		c.r.add(Violation{Invariant: "S14", TaskID: t.row.TaskID, Message: fmt.Sprintf("has %d steps of %d", len(t.steps), t.row.StepCount)})
	}
	c.r.Steps += len(t.steps)
	for i, m := range t.steps {
		p := c.replayer(t.row.TaskID, i+1)
		c.checkParents(t, i, p)
		if m.place == blocked && t.isUnblocked(i) {
			m.place = ready
		}
		c.comparePlace(t, i, p)
		for dispatch, f := range m.failed {
			p.violate(dispatch, "S14", "a %s of the history is not stored", f.Outcome)
		}
		if m.place == lease && m.confirmed {
			p.held(m.session, m.confirmedAt, time.Time{})
		}
		c.r.Ended[m.state()]++
		c.journals.sawStep(t.row.TaskID+int64(i+1), m)
	}
	c.stops(t)
	t.state = t.derive()
	c.r.States[t.state]++
	c.compareEnd(t)
	c.sample(t)
}

// isUnblocked tells whether every parent of a step ended so that it may run.
func (t *taskModel) isUnblocked(i int) bool {
	return !slices.ContainsFunc(t.parents[i], func(no int32) bool {
		parent := t.step(int(no))
		return parent == nil || !parent.place.wakes()
	})
}

func (c *checker) checkParents(t *taskModel, i int, p *replayer) {
	if len(t.steps[i].dispatched) == 0 {
		return
	}
	first := slices.MinFunc(t.steps[i].dispatched, time.Time.Compare)
	for _, no := range t.parents[i] {
		parent := t.step(int(no))
		switch {
		case parent == nil:
			p.violate(0, "S14", "depends on step %d, which its task does not have", no)
		case !parent.place.wakes():
			p.violate(1, "S2", "dispatched while its parent %d is %s", t.row.TaskID+int64(no), parent.where())
		case parent.endedAt.After(first):
			p.violate(1, "S2", "dispatched %s before its parent %d ended", parent.endedAt.Sub(first), t.row.TaskID+int64(no))
		}
	}
}

// comparePlace compares where the tables have a step with where the replay has it.
func (c *checker) comparePlace(t *taskModel, i int, p *replayer) {
	m, rows := t.steps[i], t.standing[i]
	switch {
	case len(rows) == 0 && m.place == blocked:
		return
	case len(rows) == 0:
		p.violate(0, "S14", "stands nowhere, the history leaves it %s", m)
		return
	case len(rows) > 1:
		var places []string
		for _, row := range rows {
			places = append(places, string(row.Place))
		}
		p.violate(0, "S14", "stands in %s at once", strings.Join(places, " and "))
		return
	case m.place == blocked:
		p.violate(0, "S2", "stands in %s before its parents ended", rows[0].Place)
		return
	}
	row := rows[0]
	want := placeRow{
		row.TaskID, row.StepNo, m.place, m.attempts, m.failures, m.dispatches, m.epoch, m.eventNo, m.lostLeases, m.undelivered, m.released,
		m.skipped, m.started, nil, nil, m.place == lease && m.confirmed, "",
	}
	switch {
	case m.place.ended():
		want.Undelivered, want.Released, want.Skipped, want.Started = 0, 0, 0, true
		if m.session != 0 && len(m.dispatched) > 0 {
			want.SessionID = &m.session
		}
	case m.place == lease:
		want.SessionID = &m.session
	case m.place == backoff:
		want.DueAt = m.dueAt
	case m.place == parked:
		want.Reason = m.parkReason
	}
	if got, want := showPlace(row), showPlace(want); got != want {
		p.violate(0, "S14", "stands as %s, the history leaves %s", got, want)
	}
}

func showPlace(p placeRow) string {
	due := ""
	if p.DueAt != nil {
		due = " due " + p.DueAt.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("%s (attempts %d, failures %d, dispatches %d, epoch %d, event %d, lost %d, undelivered %d, released %d, skipped %d, started %v, session %d, confirmed %v)%s%s",
		p.Place, p.Attempts, p.Failures, p.Dispatches, p.Epoch, p.EventNo, p.LostLeases, p.Undelivered, p.Released, p.Skipped, p.Started,
		or(p.SessionID, 0), p.Confirmed, p.Reason, due)
}

// derive is the task's state, from its steps'.
func (t *taskModel) derive() string {
	var well, cancels, failed, live int
	started := false
	for _, m := range t.steps {
		switch {
		case m.place.wakes():
			well++
		case m.place == cancelled:
			cancels++
		case m.place == parked:
			failed++
		case m.place != blocked:
			live++
		}
		started = started || m.started || m.failures > 0
	}
	switch {
	case well == len(t.steps):
		return "complete"
	case cancels > 0:
		return "cancelled"
	case failed > 0 && live == 0:
		return "error"
	case started || well > 0:
		return "in_progress"
	}
	return "pending"
}

// compareEnd compares the recorded end of a task with its steps and with the history of it. An end in error is recorded a
// moment after the last failure: until then there is none.
func (c *checker) compareEnd(t *taskModel) {
	violate := func(invariant, format string, args ...any) {
		c.r.add(Violation{Invariant: invariant, TaskID: t.row.TaskID, Message: fmt.Sprintf(format, args...)})
	}
	row, end := t.row, or(t.row.EndState, "")
	if row.Completes+row.Cancels > 1 || row.Reopens > row.Errors || row.Errors > row.Reopens+1 {
		violate("S13", "completed %d times, cancelled %d times, ended in error %d times and re-opened %d times", row.Completes, row.Cancels, row.Errors, row.Reopens)
	}
	told := ""
	switch {
	case row.Completes > 0:
		told = "complete"
	case row.Cancels > 0:
		told = "cancelled"
	case row.Errors > row.Reopens:
		told = "error"
	}
	if told != end {
		violate("S14", "its recorded end is %q, the history says %q", end, told)
	}
	isFinal := t.state == "complete" || t.state == "cancelled"
	if end != t.state && (isFinal || end != "") {
		violate("S13", "its steps make it %s, its recorded end is %q", t.state, end)
	}
}

// maxSampledSteps bounds what is asked of the SQL surface.
const maxSampledSteps = 100_000

// sample keeps some tasks, each as likely as any other, for checkSurface.
func (c *checker) sample(t *taskModel) {
	if c.sampled == nil {
		c.sampled = map[int64]*taskModel{}
	}
	t.standing, t.parents = nil, nil
	if c.sampleSize < 0 || len(c.sampled) < c.sampleSize {
		c.sampled[t.row.TaskID] = t
		return
	}
	if rand.IntN(c.r.Tasks) < c.sampleSize { //nolint:gosec // a sample, not a secret
		for id := range c.sampled { // in no order
			delete(c.sampled, id)
			break
		}
		c.sampled[t.row.TaskID] = t
	}
}

// checkSurface compares what the SQL functions say with the replay.
func (c *checker) checkSurface(ctx context.Context, tx pgx.Tx) error {
	ids, steps := make([]int64, 0, len(c.sampled)), 0
	for id, t := range c.sampled {
		if steps += len(t.steps); steps > maxSampledSteps && len(ids) > 0 && c.sampleSize > 0 {
			break
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var (
		taskID  int64
		stepNo  int
		state   string
		isReady bool
		seen    = map[int64]int{}
	)
	rows, _ := tx.Query(ctx, sqlText("surface"), ids)
	_, err := pgx.ForEachRow(rows, []any{&taskID, &stepNo, &state, &isReady}, func() error {
		seen[taskID]++
		t := c.sampled[taskID]
		if stepNo == 0 {
			if state != t.state {
				c.r.add(Violation{Invariant: "S13", TaskID: taskID, Message: fmt.Sprintf("its steps make it %s, it shows as %s", t.state, state)})
			}
			return nil
		}
		m := t.step(stepNo)
		if m == nil {
			return nil
		}
		wantReady := m.place == ready || m.place == backoff && m.dueAt != nil && !m.dueAt.After(c.now)
		wantReady = wantReady && !m.isPaused
		if lets, known := c.admits(m.circuit); known {
			wantReady = wantReady && lets
		} else {
			wantReady = wantReady && isReady // as many are as it has room for; which ones hangs on all that waits
		}
		if state != m.state() || isReady != wantReady {
			c.r.add(Violation{
				Invariant: "S13", TaskID: taskID, StepID: taskID + int64(stepNo),
				Message: fmt.Sprintf("is %s and ready: %v; it shows as %s and ready: %v", m.state(), wantReady, state, isReady),
			})
		}
		return nil
	})
	for _, id := range ids {
		if want := 1 + len(c.sampled[id].steps); err == nil && seen[id] != want {
			c.r.add(Violation{Invariant: "S13", TaskID: id, Message: fmt.Sprintf("shows %d rows of itself and its steps, has %d", seen[id], want)})
		}
	}
	return err
}
