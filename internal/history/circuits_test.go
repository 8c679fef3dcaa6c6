package history_test

import (
	_ "embed"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

//go:embed testdata/circuits.sql
var circuitsSQL string

func circuitRecord(t *testing.T) *pgtest.DB {
	t.Helper()
	db := clean(t)
	if _, err := db.Pool.Exec(t.Context(), circuitsSQL); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestCleanRecordOfACircuitHolds(t *testing.T) {
	got := check(t, circuitRecord(t))
	for _, v := range got.Violations {
		t.Error(v)
	}
	if got.Circuits != 1 || got.Probes != 4 {
		t.Errorf("%d circuits and %d probes, want 1 and 4", got.Circuits, got.Probes)
	}
}

// Every way to break S11 is noticed, and by its name.
func TestViolationsOfCircuits(t *testing.T) {
	for _, tt := range []struct{ name, sql, want string }{
		{
			"granted while open",
			`update history set recorded_at = at(115.9) where kind = 'dispatched' and step_nos = '{4}' and task_ids[1] = 9 << 14; update circuit_event set recorded_at = at(115) where generation = 5`,
			`S11: step 147460, dispatch 1: dispatched while circuit "svc" was open, since 2026-03-01T00:01:55Z`,
		},
		{
			"an attempt while open",
			`update history set recorded_at = at(120) where kind = 'dispatched' and step_nos = '{4}' and task_ids[1] = 9 << 14`,
			`S11: step 147460, dispatch 1: an attempt was charged that began while circuit "svc" was open`,
		},
		{
			"granted while held",
			`update history set recorded_at = at(155) where kind = 'dispatched' and step_nos = '{7}'`,
			`S11: step 147463, dispatch 1: dispatched while circuit "svc" was held, since 2026-03-01T00:02:30Z`,
		},
		{
			"granted where it opened again and its open time was put off",
			`update circuit_event set generation = generation + 20 where generation > 5; update circuit_event set generation = generation - 19 where generation > 20;
			 select cev(126, 6, 'open', 'open', 'reach', 136.5); update circuit_event set recorded_at = at(136.5) where generation = 7; update circuit set generation = 13;
			 update lease set circuit_generation = 13 where probe; update history set recorded_at = at(126) where kind = 'dispatched' and step_nos = '{4}' and task_ids[1] = 9 << 14`,
			`S11: step 147460, dispatch 1: dispatched while circuit "svc" was open, since 2026-03-01T00:01:56Z`,
		},
		{
			"too many probes at once",
			`select ran(8, 114.5, 117); delete from ready where step_no = 8`,
			`S11: step 147464, dispatch 1: 3 probes of circuit "svc" run at 2026-03-01T00:01:54.5Z, its max_probes is 2`,
		},
		{
			"too many probes for a policy that changed",
			`update circuit_event set policy.max_probes = 1 where generation = 4`,
			`2 probes of circuit "svc" run at 2026-03-01T00:01:54Z, its max_probes is 1`,
		},
		{
			"a probe's slot that stands for nothing",
			`update lease set dispatches = 2 where probe`,
			`S11: step 147463, dispatch 2: a probe's slot is leaked: its lease of circuit "svc" stands, and the history has no such run under way`,
		},
		{
			"a probe's slot of a run that has ended",
			`insert into lease select (jsonb_populate_record(lease, '{"step_no": 4}')).* from lease where probe`,
			`S11: step 147460, dispatch 1: a probe's slot is leaked: its lease of circuit "svc" stands, and the history has no such run under way`,
		},
		{
			"a slot that is not counted",
			`create or replace function circuit_room(c circuit, policy circuit_policy, at timestamptz) returns int language sql as 'select 0'`,
			`S11: circuit "svc": a probe's slot is leaked: 1 of 2 probes run, and there is room for 0`,
		},
		{
			"a probe that is not marked",
			`update lease set probe = false where probe`,
			`S11: step 147463, dispatch 1: its lease is a probe's: false; it was granted while circuit "svc" was half_open`,
		},
		{
			"a lease of another circuit",
			`update lease set circuit_id = null where probe`,
			`S11: step 147463, dispatch 1: its lease takes a slot of circuit 0, its lane stands behind circuit 1`,
		},
		{
			"a lease granted in a generation that let nothing go",
			`update lease set circuit_generation = 10 where probe`,
			`S11: step 147463, dispatch 1: its lease was granted in generation 10 of circuit "svc", which was held`,
		},
		{
			"a wave that is not doubled",
			`update circuit_event set wave = 1 where generation = 8`,
			`S11: circuit "svc": event 8 begins a wave of 1 after one of 1`,
		},
		{
			"a first wave that is too large",
			`update circuit_event set wave = 3 where generation = 7; update circuit_event set wave = 6 where generation = 8`,
			`S11: circuit "svc": event 7 begins with a wave of 3, its policy says 1`,
		},
		{
			"open for no longer than before",
			`update circuit_event set open_until = at(126) where generation = 5`,
			`S11: circuit "svc": event 5 opens it until 2026-03-01T00:02:06Z, its policy says for 20s`,
		},
		{
			"probed too early",
			`update circuit_event set recorded_at = at(112.5) where generation = 4`,
			`S11: circuit "svc": event 4: probing began 500ms before its open time was up`,
		},
		{
			"closed without being probed",
			`update circuit_event set to_state = 'closed' where generation = 11; update circuit_event set from_state = 'closed', to_state = 'closed' where generation = 12;
			 update circuit set state = 'closed'; update lease set probe = null where probe`,
			`S11: circuit "svc": event 11: release leads from held to closed`,
		},
		{
			"an event left out",
			`delete from circuit_event where generation = 12`,
			`S14: circuit "svc": stands as half_open (generation 12, open until never, wave 0), its record leaves half_open (generation 11,`,
		},
		{
			"an event that begins elsewhere",
			`delete from circuit_event where generation = 4`,
			`S14: circuit "svc": event 5 (probe_failed) begins half_open, event 3 ended open`,
		},
		{
			"events out of order",
			`update circuit_event set recorded_at = at(99) where generation = 12`,
			`S14: circuit "svc": event 12 is recorded 1m1s before the one it follows`,
		},
		{
			"called ready behind a circuit that lets nothing go",
			`select cev(163, 13, 'half_open', 'held', 'hold'); update circuit set state = 'held', generation = 13, entered = 13, hold_from = at(163);
			 create or replace function circuit_admits(of_circuit int, of_lane int, of_task bigint, of_step int, at timestamptz) returns boolean language sql as 'select true'`,
			`S13: step 147457: is error and ready: false; it shows as error and ready: true`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := circuitRecord(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			got := check(t, db)
			if !slices.ContainsFunc(got.Violations, func(v history.Violation) bool { return strings.Contains(v.String(), tt.want) }) {
				t.Errorf("no violation says %q, but:", tt.want)
				for _, v := range got.Violations {
					t.Log(v)
				}
			}
		})
	}
}

// What a worker was told of a probe must be what the record says of the circuit.
func TestWorkersAreToldOfProbes(t *testing.T) {
	db := circuitRecord(t)
	for _, tt := range []struct {
		step     int64
		dispatch int
		probe    bool
		want     string
	}{
		{9<<14 + 4, 1, true, ""},
		{9<<14 + 1, 1, false, ""},
		{9<<14 + 4, 1, false, `S11: step 147460, dispatch 1: its worker was told that it is a probe: false; circuit "svc" was half_open`},
		{9<<14 + 5, 1, true, `S11: step 147461, dispatch 1: its worker was told that it is a probe: true; circuit "svc" was recovering`},
	} {
		path := filepath.Join(t.TempDir(), "w.journal")
		j, err := history.OpenJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Write(history.Entry{Kind: history.FrameReceived, StepID: tt.step, Dispatch: tt.dispatch, Token: "t", Probe: &tt.probe}); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range check(t, db, path).Violations {
			if v.Invariant == "S11" {
				got = append(got, v.String())
			}
		}
		if strings.Join(got, "\n") != tt.want {
			t.Errorf("step %d, told that it is a probe: %v:\n got %q\nwant %q", tt.step, tt.probe, got, tt.want)
		}
	}
}
