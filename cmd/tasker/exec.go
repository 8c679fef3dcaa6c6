package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

// Exit statuses of a worker's command, as sysexits.h has them. 0 is success; any other status is a failure that may be
// retried, with error_code EXIT_<status>.
const (
	exitPermanent = 65
	exitRetryable = 75
)

// Bounds of what a command may say.
const (
	maxStdout     = 4 << 20 // more than the server takes as results, so that the server is the judge of those
	maxMessage    = 4096
	maxRetryAfter = 256
)

// cutMark stands where the beginning of a long message was.
const cutMark = "[cut] "

// command runs one program for each step: the step's JSON on standard input, results as a JSON object on standard output.
type command struct {
	path string
	args []string
	env  []string
	// grace is the time between SIGTERM and SIGKILL for a run that must end.
	grace time.Duration
	// stderr also gets what the command writes to its own.
	stderr *lockedWriter
}

// run is a worker.Handler.
func (c *command) run(ctx context.Context, run *worker.Run) worker.Outcome {
	input, err := answerJSON(run.Step, "")
	if err != nil {
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "STEP_UNREADABLE", Message: err.Error()})
	}
	said, err := c.start(ctx, run.Step, append(input, '\n'))
	if err != nil && ctx.Err() != nil {
		return nil // Killed: revoked, and then nobody listens; or the worker must go, and the step goes back.
	}
	return said.outcome(err)
}

// said is all that a command said.
type said struct {
	stdout     *head
	stderr     *tail
	retryAfter string // from file descriptor 3
}

// start runs the program to its end. A context that ends kills it, and all that it started.
func (c *command) start(ctx context.Context, step *taskerv1.ReadyStep, input []byte) (*said, error) {
	// The kernel kills the program when the thread that started it ends. Locked, that is when we do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	said := &said{stdout: &head{}, stderr: &tail{}}
	hintRead, hintWrite, err := os.Pipe()
	if err != nil {
		return said, &startError{err}
	}
	defer func() { _ = hintRead.Close() }()
	cmd := exec.Command(c.path, c.args...) // Not CommandContext: it is ended below, as a group and with a grace.
	cmd.Env = append(append([]string(nil), c.env...), stepEnv(step)...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout = said.stdout
	cmd.Stderr = io.MultiWriter(said.stderr, c.stderr)
	cmd.ExtraFiles = []*os.File{hintWrite}
	// What the command leaves behind may hold its pipes open.
	cmd.WaitDelay = time.Second
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return said, errors.Join(&startError{err}, hintWrite.Close())
	}
	_ = hintWrite.Close() // The child has its own.

	hint := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(hintRead, maxRetryAfter)) // What came before an error is all there is.
		hint <- string(text)
	}()
	ended := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		signalGroup(cmd, terminate)
		timer := time.NewTimer(c.grace)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			signalGroup(cmd, kill)
		}
	}()
	err = cmd.Wait()
	close(ended)
	<-killed
	signalGroup(cmd, kill)
	_ = hintRead.SetReadDeadline(time.Now().Add(time.Second)) // A pipe that somebody outside the group holds is not waited for.
	said.retryAfter = strings.TrimSpace(<-hint)
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // It ended well, and left somebody with its pipes.
	}
	return said, err
}

// startError says that the program could not be started at all.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }

// stepEnv are the facts of a step that a shell script wants without reading JSON.
func stepEnv(step *taskerv1.ReadyStep) []string {
	env := []string{
		"TASKER_NAMESPACE=" + step.GetNamespace(),
		"TASKER_TASK_ID=" + step.GetTaskId(),
		"TASKER_TASK_NAME=" + step.GetTaskName(),
		"TASKER_STEP_ID=" + step.GetStepId(),
		"TASKER_STEP_NAME=" + step.GetStepName(),
		"TASKER_HANDLER=" + step.GetHandler(),
		"TASKER_ATTEMPT=" + strconv.Itoa(int(step.GetAttempt())),
		"TASKER_RETRY_LIMIT=" + strconv.Itoa(int(step.GetRetryLimit())),
		"TASKER_DISPATCH=" + strconv.Itoa(int(step.GetDispatch())),
		"TASKER_IDEMPOTENCY_KEY=" + step.GetIdempotencyKey(),
		"TASKER_LEASE_TOKEN=" + step.GetLeaseToken(),
	}
	if deadline := step.GetDeadline(); deadline != nil {
		env = append(env, "TASKER_DEADLINE="+deadline.AsTime().Format(time.RFC3339Nano))
	}
	if trace := step.GetTraceContext(); trace.GetTraceparent() != "" {
		env = append(env, "TRACEPARENT="+trace.GetTraceparent(), "TRACESTATE="+trace.GetTracestate())
	}
	return env
}

// output is what a command that failed may say on its standard output.
type output struct {
	ErrorCode  string          `json:"error_code"`
	Message    string          `json:"message"`
	ErrorClass string          `json:"error_class"`
	HTTPStatus *int32          `json:"http_status"`
	Details    json.RawMessage `json:"details"`
	RetryAfter json.RawMessage `json:"retry_after"`
	Reach      string          `json:"reach"` // circuit, or anything else: the step alone
	Blame      string          `json:"blame"` // worker or step, or anything else: the dependency
}

// outcome is what the worker reports, from how the command ended and what it said.
func (s *said) outcome(err error) worker.Outcome {
	if err == nil {
		return s.success()
	}
	said := s.output()
	failure := &taskerv1.Failure{ErrorCode: said.ErrorCode, Message: said.Message, ErrorClass: said.ErrorClass, HttpStatus: said.HTTPStatus}
	if bytes.HasPrefix(said.Details, []byte("{")) {
		failure.Details = string(said.Details)
	}
	if failure.GetMessage() == "" {
		failure.Message = s.stderr.message()
	}
	var exit *exec.ExitError
	var start *startError
	status := 0
	code := "RUN_FAILED"
	switch {
	case errors.As(err, &start):
		code, failure.Message = "START_FAILED", err.Error()
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		status = exit.ExitCode()
		code = "EXIT_" + strconv.Itoa(status)
	case errors.As(err, &exit):
		code = signalCode(exit)
	default:
		failure.Message = err.Error()
	}
	if failure.GetErrorCode() == "" {
		failure.ErrorCode = code
	}
	if failure.GetMessage() == "" {
		failure.Message = err.Error()
	}
	if status == exitPermanent {
		return worker.PermanentFailure(failure)
	}
	hint := s.retryAfter
	if hint == "" {
		hint = retryAfterText(said.RetryAfter)
	}
	return worker.RetryableFailure(failure, append(retryHint(hint), said.circuitHints()...)...)
}

// circuitHints are what the command said of its step's circuit.
func (o output) circuitHints() (hints []worker.Hint) {
	if o.Reach == "circuit" {
		hints = append(hints, worker.ReachCircuit())
	}
	switch o.Blame {
	case "worker":
		hints = append(hints, worker.BlameOn(taskerv1.Blame_BLAME_WORKER))
	case "step":
		hints = append(hints, worker.BlameOn(taskerv1.Blame_BLAME_STEP))
	}
	return hints
}

// success takes standard output as the results, verbatim. Nothing at all is an empty object.
func (s *said) success() worker.Outcome {
	results := bytes.TrimSpace(s.stdout.kept)
	switch {
	case s.stdout.cut:
		return unusable(fmt.Sprintf("standard output is longer than %d bytes", maxStdout))
	case len(results) == 0:
		return worker.Success("{}")
	case !json.Valid(results) || results[0] != '{' || !utf8.Valid(results):
		return unusable("standard output is not one JSON object: " + clean(string(results[:min(len(results), 200)])))
	}
	return worker.Success(string(results))
}

// unusable is for a command that did its work and cannot say so. To run it again would do the work again.
func unusable(message string) worker.Outcome {
	return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "RESULTS_INVALID", Message: message})
}

// output reads what a failed command said. Anything that is not an object of that kind says nothing.
func (s *said) output() output {
	var said output
	if err := json.Unmarshal(s.stdout.kept, &said); err != nil {
		return output{}
	}
	said.ErrorCode, said.Message, said.ErrorClass = clean(said.ErrorCode), clean(said.Message), clean(said.ErrorClass)
	if len(said.ErrorCode) > 255 {
		said.ErrorCode = strings.ToValidUTF8(said.ErrorCode[:255], "")
	}
	if said.HTTPStatus != nil && (*said.HTTPStatus < 0 || *said.HTTPStatus > 999) {
		said.HTTPStatus = nil
	}
	return said
}

// retryAfterText is retry_after of the output as text: a string as it is, a number as it is written.
func retryAfterText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil {
		return number.String()
	}
	return ""
}

// maxHint is the longest delay that a typed hint may have.
const maxHint = 100 * 365 * 24 * time.Hour

// retryHint hands a hint on. The server reads whole seconds and HTTP dates, as a header has them, and forgives what it cannot
// read; only fractions of a second, which no header has, are read here.
func retryHint(text string) []worker.Hint {
	text = strings.TrimSpace(clean(text))
	if text == "" {
		return nil
	}
	_, notWhole := strconv.ParseInt(text, 10, 64)
	delay, notNumber := strconv.ParseFloat(text, 64)
	if notWhole != nil && notNumber == nil && delay >= 0 && delay < maxHint.Seconds() {
		return []worker.Hint{worker.RetryAfter(time.Duration(delay * float64(time.Second)))}
	}
	return []worker.Hint{worker.RetryAfterHeader(text)}
}

// clean makes text fit for a message: valid UTF-8 without NUL.
func clean(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "�"), "\x00", "�")
}

// head keeps the beginning of what is written to it.
type head struct {
	kept []byte
	cut  bool
}

func (h *head) Write(p []byte) (int, error) {
	room := min(len(p), maxStdout-len(h.kept))
	h.kept = append(h.kept, p[:room]...)
	h.cut = h.cut || room < len(p)
	return len(p), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	kept []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - maxMessage; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
		t.cut = true
	}
	return len(p), nil
}

// message is the end as text, marked where it was cut.
func (t *tail) message() string {
	kept := t.kept
	if t.cut {
		kept = kept[len(cutMark):]
		for len(kept) > 0 && !utf8.RuneStart(kept[0]) {
			kept = kept[1:]
		}
	}
	text := strings.TrimSpace(clean(string(kept)))
	if !t.cut {
		return text
	}
	// A replaced byte takes three, so the text may have grown.
	text = cutMark + text
	for len(text) > maxMessage {
		text = cutMark + strings.ToValidUTF8(text[len(cutMark)+len(text)-maxMessage:], "")
	}
	return text
}

// lockedWriter lets many commands write to one stream, a piece at a time.
type lockedWriter struct {
	mu sync.Mutex
	to io.Writer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.to.Write(p) // Nobody is left to tell, and the command must not be stopped by it.
	return len(p), nil
}
