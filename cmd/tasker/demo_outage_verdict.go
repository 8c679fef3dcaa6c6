package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/examples/registration"
	"github.com/taskerhq/tasker/internal/history"
)

// outageRun is one run by the record. It starts when it is granted: when it was confirmed says nothing of the circuit.
type outageRun struct {
	TaskID    int64
	Dispatch  int
	Attempt   int
	Outcome   string
	StartedAt time.Time
	EndedAt   time.Time
}

// outageEvent is one event of the circuit by the record.
type outageEvent struct {
	At       time.Time
	From, To string
	Cause    string
	Wave     int
	TaskID   int64 // 0: no attempt brought it about
	Dispatch int
}

// sideRecord is what is left of a side when it is over.
type sideRecord struct {
	side   *outageSide
	runs   []outageRun
	events []outageEvent
	byUser map[int64]int64 // task by user
}

func (d *demo) sideRecord(ctx context.Context, conn *pgx.Conn, side *outageSide) (r sideRecord, err error) {
	r = sideRecord{side: side, byUser: side.client.users()}
	granted := map[runKey]time.Time{}
	rows, _ := conn.Query(ctx, "select task_id, dispatch, recorded_at from history_v where namespace = $1 and kind = 'dispatched'", side.namespace)
	var key runKey
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&key.task, &key.dispatch, &at}, func() error {
		granted[key] = at
		return nil
	}); err != nil {
		return r, fmt.Errorf("reading the history: %w", err)
	}
	rows, _ = conn.Query(ctx, `
		select task_id, dispatch, attempt, outcome, ended_at, ended_at from step_attempts_v where namespace = $1 and outcome is not null`, side.namespace)
	if r.runs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[outageRun]); err != nil {
		return r, fmt.Errorf("reading the attempts: %w", err)
	}
	for i := range r.runs {
		run := &r.runs[i]
		if run.StartedAt = granted[runKey{run.TaskID, run.Dispatch}]; run.StartedAt.IsZero() {
			return r, fmt.Errorf("task %d has no record of its dispatch %d", run.TaskID, run.Dispatch)
		}
	}
	rows, _ = conn.Query(ctx, `
		select at, from_state, to_state, cause, coalesce(wave, 0), coalesce(task_id, 0), coalesce(dispatch, 0)
		from circuit_events_v where namespace = $1 and circuit = $2 order by event_id`, side.namespace, registration.UserService)
	if r.events, err = pgx.CollectRows(rows, pgx.RowToStructByPos[outageEvent]); err != nil {
		return r, fmt.Errorf("reading the circuit's record: %w", err)
	}
	return r, nil
}

// runKey tells runs apart.
type runKey struct {
	task     int64
	dispatch int
}

// trip is the event that opened the circuit first. Nil: it never opened.
func (r *sideRecord) trip() *outageEvent {
	for i := range r.events {
		if r.events[i].To == "open" {
			return &r.events[i]
		}
	}
	return nil
}

// probes are the runs whose failure opened it again.
func (r *sideRecord) probes() map[runKey]bool {
	probes := map[runKey]bool{}
	for _, e := range r.events {
		if e.Cause == "probe_failed" {
			probes[runKey{e.TaskID, e.Dispatch}] = true
		}
	}
	return probes
}

// callFaults holds the calls that met a dead service after the trip against the runs that were under way then, and the probes: each of
// them had one.
func (r *sideRecord) callFaults() (calls, underWay int, faults []string) {
	trip := r.trip()
	if trip == nil {
		return 0, 0, []string{"the circuit never opened"}
	}
	left := map[runKey]int{}
	for key := range r.probes() {
		left[key] = 1
	}
	for _, run := range r.runs {
		if run.StartedAt.Before(trip.At) && run.EndedAt.After(trip.At) {
			left[runKey{run.TaskID, run.Dispatch}] = 1
			underWay++
		}
	}
	for _, call := range r.side.services.Calls() {
		if call.Answer.Status != 503 {
			continue
		}
		key := runKey{r.byUser[call.User], call.Dispatch}
		if call.BeganAt.Before(trip.At) {
			// It is this run's one call, if it was under way.
			delete(left, key)
			continue
		}
		calls++
		if left[key]--; left[key] < 0 {
			faults = append(faults, fmt.Sprintf("user %d, dispatch %d: called %s after the circuit opened, and was neither a probe nor a call under way",
				call.User, call.Dispatch, call.BeganAt.Sub(trip.At).Round(time.Millisecond)))
		}
	}
	return calls, underWay, faults
}

// burntFaults says which runs began while the circuit was open, and which attempts failed that began after the trip and were no
// probes. waited is how many steps began only when the probes had passed, and then needed one attempt.
func (r *sideRecord) burntFaults() (waited int, faults []string) {
	trip := r.trip()
	if trip == nil {
		return 0, []string{"the circuit never opened"}
	}
	probes := r.probes()
	tried := map[int64]bool{} // before the trip, or as a probe
	for _, run := range r.runs {
		if run.StartedAt.Before(trip.At) || probes[runKey{run.TaskID, run.Dispatch}] {
			tried[run.TaskID] = true
		}
	}
	for _, run := range r.runs {
		name := fmt.Sprintf("task %d, dispatch %d", run.TaskID, run.Dispatch)
		if run.StartedAt.Before(trip.At) {
			continue
		}
		if at := r.stateAt(run.StartedAt); at == "open" {
			faults = append(faults, name+": began while the circuit was open")
		}
		switch {
		case run.Outcome != "success" && !probes[runKey{run.TaskID, run.Dispatch}]:
			faults = append(faults, fmt.Sprintf("%s: %s, and was no probe", name, run.Outcome))
		case !tried[run.TaskID] && run.Attempt != 1:
			faults = append(faults, fmt.Sprintf("%s: had waited, and it is attempt %d", name, run.Attempt))
		case !tried[run.TaskID]:
			waited++
		}
	}
	if waited == 0 {
		faults = append(faults, "no step waited behind the circuit")
	}
	return waited, faults
}

// stateAt is where the circuit stood at an instant.
func (r *sideRecord) stateAt(at time.Time) string {
	state := "closed"
	for _, e := range r.events {
		if e.At.After(at) {
			break
		}
		state = e.To
	}
	return state
}

// waveFaults says where a wave was not twice as large as the one before, or more runs began in one than it let out.
func (r *sideRecord) waveFaults() (waves []int, faults []string) {
	for i, e := range r.events {
		if e.Wave == 0 {
			continue
		}
		want := int(outagePolicy.GetRecoveryWave())
		if e.Cause == "wave_passed" && len(waves) > 0 {
			want = 2 * waves[len(waves)-1]
		}
		waves = append(waves, e.Wave)
		if e.Wave != want {
			faults = append(faults, fmt.Sprintf("a wave of %d where %d were due", e.Wave, want))
		}
		until := time.Now()
		if i+1 < len(r.events) {
			until = r.events[i+1].At
		}
		began := 0
		for _, run := range r.runs {
			if !run.StartedAt.Before(e.At) && run.StartedAt.Before(until) {
				began++
			}
		}
		if began > e.Wave {
			faults = append(faults, fmt.Sprintf("%d runs began in a wave of %d", began, e.Wave))
		}
	}
	if len(waves) < 3 {
		faults = append(faults, fmt.Sprintf("it recovered in %d waves", len(waves)))
	}
	if n := len(r.events); n > 0 && r.events[n-1].To != "closed" {
		faults = append(faults, "in the end it is "+r.events[n-1].To)
	}
	return waves, faults
}

// burnt sums up the attempts: how many failed, and the most that one step took.
func (r *sideRecord) burnt() (failed, most int) {
	for _, run := range r.runs {
		if run.Outcome != "success" {
			failed++
		}
		most = max(most, run.Attempt)
	}
	return failed, most
}

func (r *sideRecord) complete() (tasks int) {
	for _, run := range r.runs {
		if run.Outcome == "success" {
			tasks++
		}
	}
	return tasks
}

// doneAfter is when the last task was done, after an instant.
func (r *sideRecord) doneAfter(at time.Time) time.Duration {
	var last time.Time
	for _, run := range r.runs {
		if run.EndedAt.After(last) {
			last = run.EndedAt
		}
	}
	return last.Sub(at)
}

// judgeOutage prints both sides next to each other, decides the promises, and says whether all were kept.
func (d *demo) judgeOutage(ctx context.Context, back time.Time) (holds bool, err error) {
	owner, err := d.connectDemo(ctx, "")
	if err != nil {
		return false, fmt.Errorf("connecting to the database: %w", err)
	}
	defer owner.Close(ctx)
	began := time.Now()
	report, err := history.Check(ctx, owner, history.Options{Journals: d.journals})
	if err != nil {
		return false, fmt.Errorf("checking the history: %w", err)
	}
	d.say("replayed the history against %d journals in %s", len(d.journals), time.Since(began).Round(time.Millisecond))
	records := map[string]*sideRecord{}
	for _, side := range d.sides {
		r, err := d.sideRecord(ctx, owner, side)
		if err != nil {
			return false, err
		}
		records[side.namespace] = &r
	}
	with, without := records[withCircuit], records[noCircuit]
	calls, underWay, callFaults := with.callFaults()
	waited, burntFaults := with.burntFaults()
	waves, waveFaults := with.waveFaults()
	if with.side.vain() >= without.side.vain() {
		callFaults = append(callFaults, fmt.Sprintf("the dead service was called %d times with the circuit, %d times without", with.side.vain(), without.side.vain()))
	}

	fmt.Fprintln(d.cli.stdout)
	list := d.printer.table("", noCircuit, withCircuit)
	row := func(name string, of func(*sideRecord) any) {
		list.add(name, fmt.Sprint(of(without)), fmt.Sprint(of(with)))
	}
	row("tasks complete", func(r *sideRecord) any { return r.complete() })
	row("calls to the dead service", func(r *sideRecord) any { return r.side.vain() })
	list.add("of them after the circuit had opened", "", fmt.Sprint(calls))
	row("attempts that failed", func(r *sideRecord) any { failed, _ := r.burnt(); return failed })
	row("most attempts of one step", func(r *sideRecord) any { _, most := r.burnt(); return most })
	row("all done after the service was back", func(r *sideRecord) any { return r.doneAfter(back).Round(100 * time.Millisecond) })
	if err := list.print(); err != nil {
		return false, err
	}
	fmt.Fprintln(d.cli.stdout)

	var violations []string
	for _, v := range report.Violations {
		violations = append(violations, v.String())
	}
	holds = d.promise(callFaults, "from the trip on, a dead service is probed and not called: %d calls, for %d probes and %d runs that were under way", calls, len(with.probes()), underWay)
	holds = d.promise(burntFaults, "no waiting step loses an attempt: %d steps waited, and each was done by its first", waited) && holds
	holds = d.promise(waveFaults, "the recovery comes in doubling waves: %v", waves) && holds
	holds = d.promise(violations, "none lost, none twice: %d submits and %d reports acknowledged, each found in the history once", report.AckedSubmits, report.AckedReports) && holds
	fmt.Fprintln(d.cli.stdout)
	return holds, nil
}
