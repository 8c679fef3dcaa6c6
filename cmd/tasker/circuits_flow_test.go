package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func (p *person) circuit(name string) *taskerv1.Circuit {
	p.t.Helper()
	return answer(p, &taskerv1.GetCircuitResponse{}, "circuits", "get", name).GetCircuit()
}

// calling is a template of one step that calls a circuit.
const calling = "steps: [{name: call, circuit: user_service, retry_limit: 100, backoff: {initial: 0s, max: 0s}}]\n"

func TestACircuitIsHeldAndReleased(t *testing.T) {
	p := newPerson(t)
	p.refused("CIRCUIT_NOT_FOUND", "circuits", "get", "user_service")
	p.refused("`tasker circuits` lists", "circuits", "release", "user_service")
	if got := p.ok("circuits", "hold", "user_service", "--reason", "moving its database", "--for", "1h"); !strings.HasPrefix(got, "circuit user_service is held until ") {
		t.Errorf("hold said %q", got)
	}
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("calling.yaml", calling)))
	step := p.steps(id)[0]
	if step.GetReadyForExecution() || step.GetWaitingFor() != taskerv1.WaitingFor_WAITING_FOR_PAUSED || step.GetWaitingUntil() == nil {
		t.Errorf("behind a held circuit the step is %v", step)
	}
	held := p.circuit("user_service")
	if held.GetState() != circuitHeld || held.GetHold().GetReason() != "moving its database" || held.GetHold().GetEndsAt() == nil || held.GetWaitingSteps() != 1 {
		t.Errorf("the circuit is %v", held)
	}
	if table := p.ok("circuits", "--state", "held", "--waiting"); !strings.Contains(table, "user_service") {
		t.Errorf("the list is\n%s", table)
	}
	if list := answer(p, &taskerv1.ListCircuitsResponse{}, "circuits", "list", "--state", "open"); len(list.GetCircuits()) > 0 {
		t.Errorf("open ones are %v", list)
	}
	if list := answer(p, &taskerv1.ListCircuitsResponse{}, "circuits", "--waiting=2"); len(list.GetCircuits()) > 0 {
		t.Errorf("those that hold up two steps are %v", list)
	}
	if got := p.ok("circuits", "release", "user_service", "--reason", "it is back"); strings.TrimSpace(got) != "circuit user_service is half_open" {
		t.Errorf("release said %q", got)
	}
	p.work("true", "--handler", "call")
	p.ok("task", "watch", id)
	events := answer(p, &taskerv1.ListCircuitEventsResponse{}, "circuits", "events", "user_service", "--from", "-1h").GetEvents()
	var causes []string
	for _, e := range events {
		causes = append(causes, word(e.GetCause()))
	}
	if got := strings.Join(causes, " "); !strings.HasSuffix(got, "release hold") || events[len(events)-2].GetReason() != "it is back" {
		t.Errorf("the record is %v", events)
	}
	if table := p.ok("circuits", "events", "--limit", "1"); strings.Count(table, "\n") != 2 {
		t.Errorf("one event is\n%s", table)
	}
	planned := p.ok("circuit", "hold", "mail", "--reason", "window", "--from", "2h", "--for", "1h")
	if !strings.HasPrefix(planned, "circuit mail is closed, to be held from ") || !strings.Contains(planned, " until ") {
		t.Errorf("a planned hold said %q", planned)
	}
	if got := p.ok("circuit", "release", "mail"); strings.TrimSpace(got) != "circuit mail is closed" || p.circuit("mail").GetHold() != nil {
		t.Errorf("the release of a planned hold said %q", got)
	}
	p.refused("VALIDATION", "circuits", "hold", "mail", "--reason", "r", "--until", "-1h")
}

func TestAPolicyIsSetForACircuitAndForAll(t *testing.T) {
	p := newPerson(t)
	p.ok("circuits", "policy", "--default", "--set", "open_duration=1m", "--set", "max_probes=2")
	p.ok("circuits", "policy", "user_service", "-f", p.file("policy.yaml", "max_probes: 5\nrate: 2.5\n"))
	if table := squeezed(p.ok("circuits", "policy", "user_service")); !strings.Contains(table, "max_probes 5 circuit") || !strings.Contains(table, "open_duration 1m0s default") {
		t.Errorf("the policy is\n%s", table)
	}
	p.ok("circuits", "policy", "user_service", "--unset", "max_probes", "--reason", "it is well")
	x := p.circuit("user_service")
	if x.GetPolicy().MaxProbes != nil || x.GetPolicyInForce().GetMaxProbes() != 2 || x.GetPolicy().GetRate() != 2.5 {
		t.Errorf("the policy is %v, in force %v", x.GetPolicy(), x.GetPolicyInForce())
	}
	defaults := answer(p, &taskerv1.GetCircuitResponse{}, "circuits", "policy", "--default").GetCircuit()
	if defaults.GetName() != "" || defaults.GetPolicy().GetMaxProbes() != 2 || defaults.GetPolicyInForce().GetMinObservations() != 20 {
		t.Errorf("the default is %v", defaults)
	}
	p.refused("max_probes", "circuits", "policy", "user_service", "--set", "max_probes=101")
	p.refused("max_open_duration", "circuits", "policy", "user_service", "--set", "open_duration=2h", "--set", "max_open_duration=1h")
}

// What opens a circuit is told to whoever watches, and to whoever asks why a step does not run.
func TestACircuitOpensUnderTheEyesOfItsWatchers(t *testing.T) {
	p := newPerson(t)
	p.ok("circuits", "policy", "user_service", "--set", "min_observations=3", "--set", "open_duration=1h")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := func(format string) (lines *bufio.Scanner, ended chan int) {
		read, write := io.Pipe()
		ended = make(chan int, 1)
		go func() {
			code := run(ctx, []string{"circuits", "--watch", "-o", format}, p.getenv, strings.NewReader(""), write, io.Discard)
			_ = write.Close()
			ended <- code
		}()
		return bufio.NewScanner(read), ended
	}
	people, peopleEnded := watch("table")
	programs, programsEnded := watch("json")
	if !people.Scan() || !strings.Contains(people.Text(), "user_service  closed") {
		t.Errorf("at first a person sees %q", people.Text())
	}
	frame := func() *taskerv1.WatchCircuitsResponse {
		f := &taskerv1.WatchCircuitsResponse{}
		if !programs.Scan() || !json.Valid(programs.Bytes()) {
			t.Fatalf("a program sees %q", programs.Text())
		}
		if err := protojson.Unmarshal(programs.Bytes(), f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if first := frame(); len(first.GetSnapshot().GetCircuits()) != 1 || first.GetRevision() == "" {
		t.Errorf("at first a program sees %v", first)
	}
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("calling.yaml", calling)))
	p.work("exit 75", "--handler", "call")
	if !people.Scan() || !strings.Contains(people.Text(), "user_service  closed -> open  failure_rate  open_until ") ||
		!strings.Contains(people.Text(), "3 of 3 calls failed") {
		t.Errorf("then a person sees %q", people.Text())
	}
	opened := frame()
	if c := opened.GetChange(); len(c.GetCircuits()) != 1 || c.GetCircuits()[0].GetState() != circuitOpen || len(c.GetEvents()) != 1 ||
		c.GetEvents()[0].GetStepId() != p.steps(id)[0].GetStepId() || c.GetEvents()[0].GetDispatch() != 3 {
		t.Errorf("then a program sees %v", opened)
	}
	step := p.steps(id)[0]
	if step.GetReadyForExecution() || step.GetWaitingFor() != taskerv1.WaitingFor_WAITING_FOR_CIRCUIT || step.GetAttempts() != 3 {
		t.Errorf("behind an open circuit the step is %v", step)
	}
	if facts := squeezed(p.ok("step", "get", step.GetStepId())); !strings.Contains(facts, "waiting_for circuit") || !strings.Contains(facts, "circuit user_service") {
		t.Errorf("the step is\n%s", facts)
	}
	cancel()
	if a, b := <-peopleEnded, <-programsEnded; a != 0 || b != 0 {
		t.Errorf("the watches ended with %d and %d", a, b)
	}
}
