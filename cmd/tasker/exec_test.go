package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

func testStep() *taskerv1.ReadyStep {
	return &taskerv1.ReadyStep{
		Namespace: "default", TaskId: "16384", StepId: "16385", TaskName: "order", StepName: "charge", Handler: "charge",
		LeaseToken: "token", Attempt: 2, RetryLimit: 5, Dispatch: 3, IdempotencyKey: "key/1",
		Context: `{"amount":12345678901234567890,"note":"a \"quoted\" one"}`, HandlerConfig: `{"timeout":30}`,
		DependencyResults: map[string]string{"reserve": `{"ok":true}`},
		TraceContext:      &taskerv1.TraceContext{Traceparent: "00-1-2-01"},
	}
}

// shell runs a script as a worker's command.
func shell(ctx context.Context, script string, adjust ...func(*command)) worker.Outcome {
	c := &command{
		path: "/bin/sh", args: []string{"-c", script}, env: os.Environ(), grace: patience, stderr: &lockedWriter{to: io.Discard},
	}
	for _, change := range adjust {
		change(c)
	}
	return c.run(ctx, &worker.Run{Step: testStep()})
}

// described is an outcome in one line.
func described(outcome worker.Outcome) string {
	failure, kind := outcome.GetRetryableFailure().GetFailure(), "retryable"
	hint := ""
	switch {
	case outcome == nil:
		return "handed back"
	case outcome.GetSuccess() != nil:
		return "success " + outcome.GetSuccess().GetResults()
	case outcome.GetPermanentFailure() != nil:
		failure, kind = outcome.GetPermanentFailure().GetFailure(), "permanent"
	}
	switch retry := outcome.GetRetryableFailure().GetRetryHint().(type) {
	case *taskerv1.StepRetryableFailure_RetryAfter:
		hint = " after " + retry.RetryAfter.AsDuration().String()
	case *taskerv1.StepRetryableFailure_RetryAfterHeader:
		hint = " header " + retry.RetryAfterHeader
	}
	if retry := outcome.GetRetryableFailure(); retry.GetReach() == taskerv1.Reach_REACH_CIRCUIT {
		hint += " reaching its circuit"
	}
	if blame := outcome.GetRetryableFailure().GetBlame(); blame != taskerv1.Blame_BLAME_UNSPECIFIED {
		hint += " by " + blame.String()
	}
	status := ""
	if failure.HttpStatus != nil {
		status = fmt.Sprintf(" http %d", failure.GetHttpStatus())
	}
	return fmt.Sprintf("%s %s%s%s: %s", kind, failure.GetErrorCode(), status, hint, failure.GetMessage())
}

func TestHowACommandEndsIsHowItsRunEnded(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"results", `echo '{"id": 9007199254740993, "x": 1e3}'`, `success {"id": 9007199254740993, "x": 1e3}`},
		{"no results", `true`, `success {}`},
		{"input not read", `exec 0<&-; echo '{}'`, `success {}`},
		{"results that are no JSON", `echo done`, `permanent RESULTS_INVALID: standard output is not one JSON object: done`},
		{"results that are no object", `echo '[1]'`, `permanent RESULTS_INVALID: standard output is not one JSON object: [1]`},
		{"results twice", `echo '{}{}'`, `permanent RESULTS_INVALID: standard output is not one JSON object: {}{}`},
		{"permanent", `echo no such card >&2; exit 65`, `permanent EXIT_65: no such card`},
		{"retryable", `echo busy >&2; exit 75`, `retryable EXIT_75: busy`},
		{"any other status", `exit 1`, `retryable EXIT_1: exit status 1`},
		{"greatest status", `exit 255`, `retryable EXIT_255: exit status 255`},
		{"killed", `kill -9 $$`, `retryable SIGNAL_9: signal: killed`},
		{"hint on descriptor 3", `echo 7 >&3; exit 75`, `retryable EXIT_75 header 7: exit status 75`},
		{"fraction on descriptor 3", `echo 0.25 >&3; exit 75`, `retryable EXIT_75 after 250ms: exit status 75`},
		{"date on descriptor 3", `echo 'Fri, 31 Dec 1999 23:59:59 GMT' >&3; exit 75`, `retryable EXIT_75 header Fri, 31 Dec 1999 23:59:59 GMT: exit status 75`},
		{"nonsense on descriptor 3", `echo soon >&3; exit 75`, `retryable EXIT_75 header soon: exit status 75`},
		{"negative on descriptor 3", `echo -1.5 >&3; exit 75`, `retryable EXIT_75 header -1.5: exit status 75`},
		{"hint without a failure", `echo 7 >&3`, `success {}`},
		{"hint with a permanent failure", `echo 7 >&3; exit 65`, `permanent EXIT_65: exit status 65`},
		{"hint in the output, a number", `echo '{"retry_after": 30}'; exit 75`, `retryable EXIT_75 header 30: exit status 75`},
		{"hint in the output, a fraction", `echo '{"retry_after": 1.5}'; exit 75`, `retryable EXIT_75 after 1.5s: exit status 75`},
		{"hint in the output, a string", `echo '{"retry_after": "120"}'; exit 75`, `retryable EXIT_75 header 120: exit status 75`},
		{"descriptor 3 before the output", `echo 1 >&3; echo '{"retry_after": 2}'; exit 75`, `retryable EXIT_75 header 1: exit status 75`},
		{
			"failure in the output", `echo '{"error_code":"CARD_DOWN","message":"try later","http_status":503,"retry_after":"5"}'; echo noise >&2; exit 1`,
			`retryable CARD_DOWN http 503 header 5: try later`,
		},
		{"a failure that reaches the circuit", `echo '{"retry_after": 9, "reach": "circuit"}'; exit 75`, `retryable EXIT_75 header 9 reaching its circuit: exit status 75`},
		{"a failure of the worker", `echo '{"blame": "worker", "reach": "step"}'; exit 75`, `retryable EXIT_75 by BLAME_WORKER: exit status 75`},
		{"a failure of the step", `echo '{"blame": "step"}'; exit 1`, `retryable EXIT_1 by BLAME_STEP: exit status 1`},
		{"blame on nobody known", `echo '{"blame": "fate"}'; exit 75`, `retryable EXIT_75: exit status 75`},
		{"output that is no object", `echo '["retry_after"]'; exit 75`, `retryable EXIT_75: exit status 75`},
		{"status out of range", `echo '{"http_status": 5000}'; exit 75`, `retryable EXIT_75: exit status 75`},
		{"null", `echo '{"retry_after": null, "details": null}'; exit 75`, `retryable EXIT_75: exit status 75`},
		{"unprintable message", `printf 'a\000b\377' >&2; exit 1`, "retryable EXIT_1: a�b�"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := described(shell(t.Context(), c.script)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestCommandThatCannotBeStarted(t *testing.T) {
	got := shell(t.Context(), "", func(c *command) { c.path = filepath.Join(t.TempDir(), "nothing") })
	if code := got.GetRetryableFailure().GetFailure().GetErrorCode(); code != "START_FAILED" {
		t.Errorf("got %s", described(got))
	}
}

func TestStepIsOnStandardInputAndInTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	got := shell(t.Context(), `cat > "$DIR/step.json"; env > "$DIR/env"`, func(c *command) { c.env = append(c.env, "DIR="+dir) })
	if described(got) != "success {}" {
		t.Fatal(described(got))
	}
	body, err := os.ReadFile(filepath.Join(dir, "step.json"))
	if err != nil {
		t.Fatal(err)
	}
	var step taskerv1.ReadyStep
	if err := protojson.Unmarshal(body, &step); err != nil {
		t.Fatal(err)
	}
	if step.GetContext() != testStep().GetContext() || step.GetDependencyResults()["reserve"] != `{"ok":true}` {
		t.Errorf("the command was given %s", body)
	}
	if lines := strings.Count(string(body), "\n"); lines != 1 || !strings.HasSuffix(string(body), "\n") {
		t.Errorf("the step takes %d lines", lines)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"TASKER_STEP_ID=16385", "TASKER_TASK_ID=16384", "TASKER_ATTEMPT=2", "TASKER_RETRY_LIMIT=5", "TASKER_DISPATCH=3",
		"TASKER_IDEMPOTENCY_KEY=key/1", "TASKER_LEASE_TOKEN=token", "TASKER_HANDLER=charge", "TASKER_STEP_NAME=charge",
		"TASKER_TASK_NAME=order", "TASKER_NAMESPACE=default", "TRACEPARENT=00-1-2-01",
	} {
		if !strings.Contains("\n"+string(env), "\n"+want+"\n") {
			t.Errorf("the environment lacks %s", want)
		}
	}
}

func TestLongStandardErrorIsCutAtItsBeginning(t *testing.T) {
	var through strings.Builder
	got := shell(t.Context(), `i=0; while [ $i -lt 2000 ]; do echo "línea $i" >&2; i=$((i+1)); done; exit 1`,
		func(c *command) { c.stderr = &lockedWriter{to: &through} })
	message := got.GetRetryableFailure().GetFailure().GetMessage()
	if len(message) > maxMessage || !strings.HasPrefix(message, cutMark) || !strings.HasSuffix(message, "línea 1999") {
		t.Errorf("message has %d bytes: %.60q … %q", len(message), message, message[max(0, len(message)-20):])
	}
	if strings.Contains(message, "�") {
		t.Error("a character was cut in two")
	}
	if lines := strings.Count(through.String(), "\n"); lines != 2000 {
		t.Errorf("%d of 2000 lines went on to our standard error", lines)
	}
}

func TestMessageStaysInBoundsWhateverItsBytes(t *testing.T) {
	tail := &tail{}
	if _, err := tail.Write([]byte(strings.Repeat("\xff\x00", maxMessage))); err != nil {
		t.Fatal(err)
	}
	if message := tail.message(); len(message) > maxMessage || !strings.HasPrefix(message, cutMark) {
		t.Errorf("message has %d bytes", len(message))
	}
}

func TestTooLongStandardOutputIsAFailure(t *testing.T) {
	got := shell(t.Context(), fmt.Sprintf(`printf '{"x":"'; head -c %d /dev/zero | tr '\0' x; printf '"}'`, maxStdout))
	if code := got.GetPermanentFailure().GetFailure().GetErrorCode(); code != "RESULTS_INVALID" {
		t.Errorf("got %.200s", described(got))
	}
}

// processGroup is a command that started another and says so, through a fifo that ends when both have.
type processGroup struct {
	fifo *os.File
	said *bufio.Reader
}

// startGroup runs a script that holds the fifo open in itself and in all that it starts, and waits until it says go.
func startGroup(ctx context.Context, t *testing.T, script string, grace time.Duration) (*processGroup, chan worker.Outcome) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	outcomes := make(chan worker.Outcome, 1)
	go func() {
		outcomes <- shell(ctx, `exec 9>"$FIFO"; `+script, func(c *command) {
			c.env = append(c.env, "FIFO="+path)
			c.grace = grace
		})
	}()
	fifo, err := os.Open(path) // Waits for the other end.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fifo.Close() })
	g := &processGroup{fifo: fifo, said: bufio.NewReader(fifo)}
	if line := g.line(t); line != "go" {
		t.Fatalf("the command said %q", line)
	}
	return g, outcomes
}

func (g *processGroup) line(t *testing.T) string {
	t.Helper()
	if err := g.fifo.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	line, err := g.said.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("waiting for the command: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// gone waits until nobody holds the fifo any more.
func (g *processGroup) gone(t *testing.T) {
	t.Helper()
	if err := g.fifo.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(g.said); err != nil {
		t.Fatalf("something of the group lives on: %v", err)
	}
}

func await(t *testing.T, outcomes chan worker.Outcome) worker.Outcome {
	t.Helper()
	select {
	case outcome := <-outcomes:
		return outcome
	case <-time.After(patience):
		t.Fatal("the command does not end")
		return nil
	}
}

func TestLostLeaseEndsTheCommandAndAllItStarted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	g, outcomes := startGroup(ctx, t, `sleep 1000 & echo go >&9; wait`, patience)
	cancel(&worker.Revoked{Reason: taskerv1.RevokeReason_REVOKE_REASON_TASK_CANCELLED})
	if got := await(t, outcomes); got != nil {
		t.Errorf("got %s", described(got))
	}
	g.gone(t)
}

func TestCommandMayCleanUpWhenItMustEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	g, outcomes := startGroup(ctx, t, `trap 'echo cleaned >&9; exit 75' TERM; echo go >&9; sleep 1000 & wait`, patience)
	cancel(worker.ErrStopped)
	if line := g.line(t); line != "cleaned" {
		t.Errorf("the command said %q", line)
	}
	if got := await(t, outcomes); got != nil {
		t.Errorf("got %s, want the step handed back", described(got))
	}
	g.gone(t)
}

func TestCommandThatSucceedsWhileItMustEndHasSucceeded(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	_, outcomes := startGroup(ctx, t, `trap 'echo "{\"late\":true}"; exit 0' TERM; echo go >&9; sleep 1000 & wait`, patience)
	cancel(worker.ErrStopped)
	if got := described(await(t, outcomes)); got != `success {"late":true}` {
		t.Errorf("got %s", got)
	}
}

func TestCommandThatWillNotEndIsKilled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	g, outcomes := startGroup(ctx, t, `trap '' TERM; echo go >&9; while :; do sleep 1000; done`, 50*time.Millisecond)
	cancel(worker.ErrStopped)
	if got := await(t, outcomes); got != nil {
		t.Errorf("got %s", described(got))
	}
	g.gone(t)
}

func TestWhatACommandLeavesBehindIsEnded(t *testing.T) {
	g, outcomes := startGroup(t.Context(), t, `sleep 1000 & echo go >&9; echo '{"done":1}'`, patience)
	if got := described(await(t, outcomes)); got != `success {"done":1}` {
		t.Errorf("got %s", got)
	}
	g.gone(t)
}

func TestRetryAfterOfTheOutputKeepsItsDigits(t *testing.T) {
	for raw, want := range map[string]string{`30`: "30", `"30"`: "30", `1e2`: "1e2", `null`: "", `{}`: "", ``: "", `true`: ""} {
		if got := retryAfterText(json.RawMessage(raw)); got != want {
			t.Errorf("%s is %q, want %q", raw, got, want)
		}
	}
}
