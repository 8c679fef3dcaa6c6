//go:build linux

package chaos_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/task"
)

// missing is what has not happened yet of what the run is to show.
func (r *circuitRun) missing(report *history.Report) (missing []string) {
	r.Helper()
	for _, want := range []struct {
		what      string
		got, need int
	}{
		{"leases lost with a killed server", report.LostLeases, 1},
		{"probes", report.Probes, *probesFlag},
		{"probes lost with a killed server", report.LostProbes, 1},
		{"failures that did not count", report.Uncounted, 1},
		{"steps that took the last place of max_in_flight", report.Full, 1},
		{"starts ahead of their pace", report.Paced, 1},
		{"steps ended by a budget of time", report.OutOfTime, 1},
		{"steps that a shut circuit brought past their deadline", report.PastDeadline, 1},
		{"steps that a shut circuit brought past their max_elapsed", report.PastElapsed, 1},
		{"workers barred that blame themselves", r.barred, 1},
	} {
		if want.got < want.need {
			missing = append(missing, fmt.Sprintf("%s: %d of %d", want.what, want.got, want.need))
		}
	}
	causes := r.causes()
	for _, want := range []struct {
		of    []string // any of these circuits
		cause task.CircuitCause
	}{
		{[]string{flapping}, task.CauseReach},
		{[]string{flapping}, task.CauseHold},
		{[]string{flapping}, task.CauseRelease},
		{[]string{sluggish}, task.CauseSlowRate},
		{[]string{sickened}, task.CauseWorkersBarred},
		{[]string{venomous}, task.CauseFailureRate},
		{[]string{patient}, task.CauseHold},
		{[]string{patient}, task.CauseHoldEnded},
		{[]string{flapping, sluggish, venomous}, task.CauseOpenElapsed},
		{[]string{flapping, sluggish, venomous}, task.CauseProbeFailed},
		{[]string{flapping, sluggish, venomous}, task.CauseProbesPassed},
		{[]string{flapping, sluggish, venomous}, task.CauseWavePassed},
		{[]string{flapping, sluggish, venomous}, task.CauseWaveFailed},
	} {
		if !slices.ContainsFunc(want.of, func(name string) bool { return causes[name][want.cause] > 0 }) {
			missing = append(missing, fmt.Sprintf("no %s of %s", want.cause, strings.Join(want.of, " or ")))
		}
	}
	return missing
}

// recover has circuits go all the way back to closed, if none has so far: once everything is healed, nothing that is submitted
// can open them again.
func (r *circuitRun) recover() {
	r.Helper()
	for began := time.Now(); ; {
		r.awaitEnd(circuitHandlers...)
		causes := r.causes()
		if causes[flapping][task.CauseRecovered]+causes[sluggish][task.CauseRecovered] > 0 {
			return
		}
		if time.Since(began) > showPatience {
			r.Fatalf("no circuit has closed %s after everything was healed", showPatience)
		}
		r.submit(1)
	}
}

// lookAtBars counts a worker that blames itself and is barred just now: a bar leaves no event.
func (r *circuitRun) lookAtBars() {
	r.Helper()
	const bars = `select count(*) from circuit_worker join circuit using (circuit_id) where name = $1 and worker_id = $2 and barred_until is not null`
	var n int
	r.must(r.db.Pool.QueryRow(r.Context(), bars, blamed, sickWorker).Scan(&n))
	r.barred += n
}

// causes counts what brought about the events of each circuit.
func (r *circuitRun) causes() map[string]map[task.CircuitCause]int {
	r.Helper()
	rows, err := r.db.Pool.Query(r.Context(), `select circuit.name, circuit_event.cause::text, count(*)::int
		from circuit_event join circuit using (circuit_id) group by 1, 2`)
	r.must(err)
	var (
		name  string
		cause task.CircuitCause
		times int
	)
	found := map[string]map[task.CircuitCause]int{}
	_, err = pgx.ForEachRow(rows, []any{&name, &cause, &times}, func() error {
		if found[name] == nil {
			found[name] = map[task.CircuitCause]int{}
		}
		found[name][cause] = times
		return nil
	})
	r.must(err)
	return found
}

// checkRecord demands that circuits opened only where their dependency was to blame, and that the sick worker alone was barred.
func (r *circuitRun) checkRecord() {
	r.Helper()
	innocent := []string{sickened, blamed, poisoned, narrow, paced}
	for _, name := range circuitHandlers {
		events, err := r.e.ListCircuitEvents(r.Context(), task.CircuitEventQuery{Circuit: name, Limit: 100_000})
		r.must(err)
		for _, e := range events {
			if e.Cause == task.CauseWorkersBarred && !slices.Equal(e.Workers, []string{sickWorker}) {
				r.Errorf("of circuit %s workers %v are barred, the sick one is %s", name, e.Workers, sickWorker)
			}
			if e.To != task.CircuitClosed && slices.Contains(innocent, name) {
				r.Errorf("circuit %s came to be %s by %s: the dependency was never down", name, e.To, e.Cause)
			}
			if name == patient && e.To == task.CircuitOpen {
				r.Errorf("circuit %s opened by %s: its steps took the blame", name, e.Cause)
			}
		}
	}
	for name, causes := range r.causes() {
		r.Logf("circuit %s: %v", name, causes)
	}
}

// checkBar demands that the worker that was barred got no steps of its circuit for as long.
func (r *circuitRun) checkBar() {
	r.Helper()
	const passedBy = `select count(*) from history
		cross join lateral unnest(task_ids, step_nos, session_ids) as granted (task_id, step_no, session_id)
		join worker_session using (session_id)
		join step on step.task_id = granted.task_id and step.step_no = granted.step_no
		join lane on lane.lane_id = step.lane_id
		join circuit_event e on e.circuit_id = lane.circuit_id and e.cause = 'workers_barred' and worker_id = any (e.worker_ids)
		where kind = 'dispatched' and history.recorded_at > e.recorded_at and history.recorded_at < e.recorded_at + (e.policy).open_duration`
	var n int
	r.must(r.db.Pool.QueryRow(r.Context(), passedBy).Scan(&n))
	if n > 0 {
		r.Errorf("S11: workers that were barred from a circuit got %d steps of it", n)
	}
}

// checkEnds compares how steps ended with what was to become of them. A good step of patient may have used up its time all
// the same, while its worker was dead: whether it had is for the checker to say.
func (r *circuitRun) checkEnds() {
	r.Helper()
	rows, err := r.db.Pool.Query(r.Context(), `select lane.circuit, step.handler_config = $1, coalesce(step_end.state::text, parked.reason::text, ''),
		  count(*)::int
		from step
		join lane using (lane_id)
		left join step_end on step_end.task_id = step.task_id and step_end.step_no = step.step_no
		left join parked on parked.task_id = step.task_id and parked.step_no = step.step_no
		group by 1, 2, 3`, poison)
	r.must(err)
	var (
		name, end string
		isPoison  bool
		n         int
	)
	good, bad := map[string]int{}, map[string]int{}
	_, err = pgx.ForEachRow(rows, []any{&name, &isPoison, &end, &n}, func() error {
		want := "complete"
		switch {
		case isPoison && name == patient:
			want = "deadline_exceeded"
		case isPoison:
			want = "exhausted"
		case name == patient && end == "deadline_exceeded":
			want = end
		}
		if end != want {
			r.Errorf("behind circuit %s %d steps (poison: %v) are %s, want %s", name, n, isPoison, end, want)
		}
		if isPoison {
			bad[name] += n
		} else {
			good[name] += n
		}
		return nil
	})
	r.must(err)
	for _, name := range circuitHandlers {
		if good[name] != r.good[name] || bad[name] != r.bad[name] {
			r.Errorf("behind circuit %s stand %d good and %d bad steps, %d and %d were submitted", name, good[name], bad[name], r.good[name], r.bad[name])
		}
	}
}
