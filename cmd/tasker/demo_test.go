package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/history"
)

// runDemoProcess runs the demo as a process of its own and gives its exit status and all it said.
func runDemoProcess(t *testing.T, mutant string, args ...string) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	python, err := filepath.Abs("../../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"demo", "--python", python}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1", demoMutantVar+"="+mutant)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func TestDemoKeepsItsPromises(t *testing.T) {
	t.Parallel()
	// PostgreSQL may run as another user, who cannot enter what t.TempDir makes.
	parent, err := os.MkdirTemp("", "tasker-demo-test-") //nolint:usetesting // As said.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(parent, "demo")
	code, said := runDemoProcess(t, "", "--chapter", "registration", "--tasks", "30", "--keep", keep)
	if code != 0 || strings.Contains(said, "BROKEN") || strings.Count(said, "  kept    ") != 7 {
		t.Fatalf("exit status %d\n%s", code, said)
	}
	for _, wanted := range []string{"kill -9 worker python-1", "kill -9 worker go-1", "kill -9 server", "Tasks     30:"} {
		if !strings.Contains(said, wanted) {
			t.Errorf("it does not say %q\n%s", wanted, said)
		}
	}
	// Each worker has done its share, and each process has a journal of its own. What a worker that took another's place finds
	// left to do depends on how quick the machine is, so its share is its predecessor's.
	for worker, processes := range map[string][]string{
		"go-1": {"go-1.1", "go-1.2"}, "go-2": {"go-2.1"}, "python-1": {"python-1.1", "python-1.2"}, "client": {"client"},
	} {
		entries := 0
		for _, name := range processes {
			err := history.ReadJournal(filepath.Join(keep, name+".journal"), func(history.Entry) error {
				entries++
				return nil
			})
			if err != nil {
				t.Errorf("the journal of %s: %v", name, err)
			}
		}
		if entries == 0 {
			t.Errorf("the journals of %s have no entries", worker)
		}
	}
}

// shortSeed is one under which 12 users meet refusals and long hints in steps that the workers in Go take, and nobody so much
// trouble that it would take more than ten seconds.
const shortSeed = "16"

// A defect must be noticed, whether it is in what a worker does or in what was written down.
func TestDemoNoticesEachDefect(t *testing.T) {
	for mutant, noticed := range map[string]string{
		"ignore_retry_after": "BROKEN  no step early",
		"retry_refused":      "BROKEN  none run after a permanent failure",
		"tamper_journal":     "BROKEN  none lost",
		"forge_journal":      "BROKEN  none lost",
		"drop_journal":       "BROKEN  one lease at a time",
		"lose_task":          "BROKEN  none lost",
	} {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			code, said := runDemoProcess(t, mutant, "--chapter", "registration", "--tasks", "12", "--seed", shortSeed)
			if code != 1 || !strings.Contains(said, noticed) {
				t.Errorf("exit status %d, wanted 1 and %q\n%s", code, noticed, said)
			}
		})
	}
}

func TestDemoKeepsItsPromisesInAnOutage(t *testing.T) {
	t.Parallel()
	code, said := runDemoProcess(t, "", "--chapter", "outage", "--outage-tasks", "600")
	if code != 0 || strings.Contains(said, "BROKEN") || strings.Count(said, "  kept    ") != 4 {
		t.Fatalf("exit status %d\n%s", code, said)
	}
	for _, wanted := range []string{"user_service is down", "with-circuit  user_service  open", "(1 rows)", "user_service is back", "calls to the dead service"} {
		if !strings.Contains(said, wanted) {
			t.Errorf("it does not say %q\n%s", wanted, said)
		}
	}
}

func TestDemoNoticesEachDefectInAnOutage(t *testing.T) {
	for mutant, noticed := range map[string]string{
		"no_circuit": "the circuit never opened",
		"call_again": "BROKEN  from the trip on",
	} {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			// The defect is in the workers in Go. Once in thirty times those in Python get every probe, and nothing is done wrong.
			var code int
			var said string
			for range 3 {
				code, said = runDemoProcess(t, mutant, "--chapter", "outage", "--outage-tasks", "500")
				if code == 1 && strings.Contains(said, noticed) {
					return
				}
			}
			t.Errorf("exit status %d, wanted 1 and %q\n%s", code, noticed, said)
		})
	}
}

func TestDemoRefusesAnUnknownDefect(t *testing.T) {
	code, said := runDemoProcess(t, "nonsense")
	if code != exitUsage || !strings.Contains(said, "must be one of") {
		t.Errorf("exit status %d\n%s", code, said)
	}
}
