package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/simulate"
)

func TestAnotherPolicyIsSimulated(t *testing.T) {
	p := newPerson(t)
	p.env["TASKER_DATA_DIR"] = shared.dataDir
	p.ok("circuits", "policy", "user_service", "--set", "min_observations=1000")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("calling.yaml", strings.Replace(calling, "100", "30", 1))))
	p.work("exit 75", "--handler", "call")
	p.eventually("its attempts are used up", func() bool { return p.steps(id)[0].GetAttempts() == 30 })

	var report simulate.Report
	body := p.ok("circuits", "simulate", "--policy", p.file("policy.yaml", "min_observations: 10\n"), "--set", "open_duration=1h", "--since", "1h", "-o", "json")
	if err := json.Unmarshal([]byte(body), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Circuits) != 1 {
		t.Fatalf("simulated %s", body)
	}
	// One step fails thirty times, one run after the other: the tenth would have tripped it.
	c := report.Circuits[0]
	if c.Name != "user_service" || c.Runs != 30 || c.Failed != 30 || len(c.Recorded.Trips) != 0 || len(c.Replayed.Trips) != 1 ||
		c.Replayed.Trips[0].Observed != 10 || c.Replayed.State != "open" || c.CallsSaved != 20 || c.RunsDelayed != 0 {
		t.Errorf("simulated %s", body)
	}
	table := squeezed(p.ok("circuits", "simulate", "--set", "min_observations=10", "--unset", "rate", "--circuit", "user_service", "--since", "1h"))
	if !strings.Contains(table, "user_service 30 30 0 0s 1 ") || !strings.Contains(table, " failure_rate 10 10 0 0 ") {
		t.Errorf("the table is\n%s", table)
	}
	if none := p.ok("circuits", "simulate", "--set", "min_observations=1000", "--since", "1h", "-o", "yaml"); !strings.Contains(none, "callsSaved: 0") {
		t.Errorf("the same policy gives\n%s", none)
	}
	p.refused("no recorded run", "circuits", "simulate", "--set", "max_probes=2", "--since", "1h", "--circuit", "other")
	p.env["TASKER_DATA_DIR"] = t.TempDir()
	p.refused("hint: --data-dir", "circuits", "simulate", "--set", "max_probes=2", "--since", "1h")
}

func TestASimulationNeedsAPolicyAndATime(t *testing.T) {
	p := &person{t: t, env: map[string]string{}}
	for words, args := range map[string][]string{
		"--since is missing":          {"--set", "max_probes=2"},
		"no policy":                   {"--since", "1h"},
		"duration before now":         {"--since", "yesterday", "--set", "max_probes=2"},
		"must be later":               {"--since", "1h", "--until", "2h", "--set", "max_probes=2"},
		"there is no field":           {"--since", "1h", "--set", "nonsense=2"},
		"the policy: max_probes":      {"--since", "1h", "--set", "max_probes=101"},
		"must be table, json or yaml": {"--since", "1h", "--set", "max_probes=2", "-o", "xml"},
	} {
		if _, stderr, code := p.try(append([]string{"circuits", "simulate"}, args...)...); code == 0 || !strings.Contains(stderr, words) {
			t.Errorf("%v: exit status %d, %s", args, code, stderr)
		}
	}
}
