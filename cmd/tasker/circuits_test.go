package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const (
	circuitOpen   = taskerv1.CircuitState_CIRCUIT_STATE_OPEN
	circuitClosed = taskerv1.CircuitState_CIRCUIT_STATE_CLOSED
	circuitHeld   = taskerv1.CircuitState_CIRCUIT_STATE_HELD
)

var lastNoon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func openCircuit() *taskerv1.Circuit {
	return &taskerv1.Circuit{
		Namespace: "default", Name: "user_service", State: circuitOpen, Generation: 7, Since: timestamppb.New(lastNoon),
		Cause:            taskerv1.CircuitCause_CIRCUIT_CAUSE_FAILURE_RATE,
		OpenUntil:        timestamppb.New(lastNoon.Add(time.Minute)),
		LastOpenDuration: durationpb.New(time.Minute), ObservedCalls: 40, FailedCalls: 30, SlowCalls: 2, FailingWorkers: 3, InFlight: 1, WaitingSteps: 10_000,
		BarredWorkers: []*taskerv1.BarredWorker{{WorkerId: "w\x1b1", Until: timestamppb.New(lastNoon)}},
		Policy:        &taskerv1.CircuitPolicy{OpenDuration: durationpb.New(90 * time.Second)},
		PolicyInForce: &taskerv1.CircuitPolicy{OpenDuration: durationpb.New(90 * time.Second), MaxProbes: proto.Int32(1), FailureRateThreshold: proto.Float64(0.5)},
	}
}

// squeezed is a text with its runs of spaces made one.
func squeezed(text string) string { return strings.Join(strings.Fields(text), " ") }

func TestTableOfCircuitsBearsTheWordsOfTheSQLSurface(t *testing.T) {
	p, out := testPrinter("table")
	if err := p.circuitTable([]*taskerv1.Circuit{openCircuit(), {Name: "idle", State: circuitClosed}}).print(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	want := "circuit state since cause open_until hold_reason held_until observed failed slow failure_rate in_flight waiting_steps barred_workers"
	if got := squeezed(lines[0]); got != want {
		t.Errorf("heading is %s", got)
	}
	want = fmt.Sprintf("user_service open %s failure_rate %s 40 30 2 0.75 1 10000+ w 1", instant(timestamppb.New(lastNoon)),
		instant(timestamppb.New(lastNoon.Add(time.Minute))))
	if got := squeezed(lines[1]); got != want {
		t.Errorf("row is %s\nwant   %s", got, want)
	}
	if got := squeezed(lines[2]); got != "idle closed 0 0 0 0 0" {
		t.Errorf("an idle circuit is %q", got)
	}
}

func TestFactsOfACircuitSayWhatDecidesItsPolicy(t *testing.T) {
	p, out := testPrinter("table")
	held := openCircuit()
	held.State, held.Hold = circuitHeld, &taskerv1.CircuitHold{Reason: "moving", Actor: "ann", StartsAt: timestamppb.New(lastNoon)}
	if err := p.circuitFacts(held); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"state held", "hold_reason moving", "held_by ann", "held_from " + instant(timestamppb.New(lastNoon)), "generation 7", "failing_workers 3",
		"barred_worker w 1 until", "open_duration 1m30s circuit", "max_probes 1 default", "failure_rate_threshold 0.5 default", "rate none default",
	} {
		if !strings.Contains(squeezed(out.String()), want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	out.Reset()
	if err := p.policyTable(&taskerv1.Circuit{Policy: held.GetPolicy(), PolicyInForce: held.GetPolicyInForce()}).print(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(squeezed(out.String()), "open_duration 1m30s namespace") {
		t.Errorf("the default policy of a namespace is\n%s", out)
	}
}

func TestAPolicyIsReadFromFlagsAndFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(body string) {
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# limits\nmax_in_flight: 20\nrate: 2.5\nopenDuration: 1m\nsuspend_budgets: true\nslow_call_duration: null\n")
	change := policyChange{file: file, set: []string{"window_duration=90s", "failure_rate_threshold=0.3", "min_observations=5"}, unset: []string{"max_probes"}, reason: "r"}
	if err := change.read(&cli{}); err != nil {
		t.Fatal(err)
	}
	want := &taskerv1.CircuitPolicy{
		MaxInFlight: proto.Int32(20), Rate: proto.Float64(2.5), OpenDuration: durationpb.New(time.Minute), SuspendBudgets: proto.Bool(true),
		WindowDuration: durationpb.New(90 * time.Second), FailureRateThreshold: proto.Float64(0.3), MinObservations: proto.Int32(5),
	}
	if !proto.Equal(change.policy, want) {
		t.Errorf("policy is %v, want %v", change.policy, want)
	}
	if got := strings.Join(change.fields, " "); got != "max_in_flight rate open_duration suspend_budgets slow_call_duration window_duration failure_rate_threshold min_observations max_probes" {
		t.Errorf("fields are %s", got)
	}
	for body, want := range map[string]string{
		"- rate\n": "must be fields and their values", "": "must be fields and their values", "speed: 1\n": "no field \"speed\"",
		"max_probes: 2\nrate: fast\n": ":2: rate must be a number", "rate: [1]\n": "must be one value", "rate: ''\n": "null unsets it",
		"rate: 1\nrate: 2\n": "given twice", "rate: 1\n\tx": "policy.yaml",
	} {
		write(body)
		change := policyChange{file: file}
		if err := change.read(&cli{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", body, err, want)
		}
	}
	none := policyChange{}
	if err := none.read(&cli{}); err != nil || len(none.fields) > 0 {
		t.Errorf("nothing to change became %v, %v", none.fields, err)
	}
	stdin := policyChange{file: "-"}
	if err := stdin.read(&cli{stdin: strings.NewReader("rate: 7\n")}); err != nil || stdin.policy.GetRate() != 7 {
		t.Errorf("standard input became %v, %v", stdin.policy, err)
	}
}

func TestChangesOfCircuitsAreLines(t *testing.T) {
	event := func(id string, from, to taskerv1.CircuitState, cause taskerv1.CircuitCause) *taskerv1.CircuitEvent {
		return &taskerv1.CircuitEvent{EventId: id, Circuit: "user_service", FromState: from, ToState: to, Cause: cause, Reason: "why\nnot"}
	}
	opened := event("9", circuitClosed, circuitOpen, taskerv1.CircuitCause_CIRCUIT_CAUSE_FAILURE_RATE)
	opened.ObservedCalls, opened.FailedCalls, opened.OpenUntil = 4, 3, timestamppb.New(lastNoon)
	frames := []*taskerv1.WatchCircuitsResponse{
		{Frame: &taskerv1.WatchCircuitsResponse_Snapshot{Snapshot: &taskerv1.CircuitsSnapshot{Circuits: []*taskerv1.Circuit{
			openCircuit(), {Name: "idle", State: circuitClosed},
		}}}},
		{Frame: &taskerv1.WatchCircuitsResponse_Change{Change: &taskerv1.CircuitsChange{Events: []*taskerv1.CircuitEvent{opened}}}},
		// Again, and what comes after it.
		{Frame: &taskerv1.WatchCircuitsResponse_Change{Change: &taskerv1.CircuitsChange{Events: []*taskerv1.CircuitEvent{
			opened, event("10", circuitOpen, circuitHeld, taskerv1.CircuitCause_CIRCUIT_CAUSE_HOLD),
			event("11", circuitHeld, circuitHeld, taskerv1.CircuitCause_CIRCUIT_CAUSE_POLICY),
		}}}},
		{Frame: &taskerv1.WatchCircuitsResponse_Heartbeat{}},
	}
	all := func(states ...taskerv1.CircuitState) string {
		p, out := testPrinter("table")
		lines := &circuitLines{printer: p, states: states, seen: map[string]int64{}}
		for _, f := range frames {
			if err := lines.show(f); err != nil {
				t.Fatal(err)
			}
		}
		var text []string
		for line := range strings.Lines(out.String()) {
			_, rest, _ := strings.Cut(strings.TrimSpace(line), "  ") // behind the time
			text = append(text, rest)
		}
		return strings.Join(text, "\n")
	}
	until := instant(timestamppb.New(lastNoon))
	snapshot := "user_service  open  open_until " + instant(timestamppb.New(lastNoon.Add(time.Minute))) + "  waiting_steps 10000+"
	tripped := "user_service  closed -> open  failure_rate  open_until " + until + "  3 of 4 calls failed, 0 slow  why not"
	if got, want := all(), strings.Join([]string{
		snapshot, "idle  closed  waiting_steps 0", tripped, "user_service  open -> held  hold  why not", "user_service  held  policy  why not",
	}, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := all(circuitOpen), snapshot+"\n"+tripped; got != want {
		t.Errorf("of open ones: got\n%s\nwant\n%s", got, want)
	}
}

func TestShellsCompleteStatesAndFields(t *testing.T) {
	for line, want := range map[string]string{
		"circuits --state ": "half_open", "circuits list --state ": "held", "circuits policy x --set ": "max_in_flight=", "circuits policy x --unset ": "rate",
		"circuits ": "release",
	} {
		var out, err strings.Builder
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		if code := run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &err); code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit status %d, offers %q", line, code, out.String())
		}
	}
}
