//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/worker"
)

// workerEnv makes the test binary be a worker, and holds its settings.
const workerEnv = "TASKER_TEST_CHAOS_WORKER"

// workerSettings say what a worker process is.
type workerSettings struct {
	Addresses, Namespace, ID, Journal string
	MaxInFlight                       int
	HandlerLimit                      int // of the first handler; 0: none
}

// runWorker is the whole life of a worker process. It gives the exit status.
func runWorker(settings string) int {
	if err := work(settings); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

func work(settings string) error {
	var s workerSettings
	if err := json.Unmarshal([]byte(settings), &s); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println("working")
	conn, err := worker.Dial(s.Addresses, insecure.NewCredentials())
	if err != nil {
		return err
	}
	d := &diary{runs: map[string]*taskerv1.ReadyStep{}}
	if d.file, err = history.OpenJournal(s.Journal); err != nil {
		return err
	}
	c := &crew{client: taskerv1.NewWorkerServiceClient(conn), diary: d}
	config := worker.Config{
		Client: c.client, Namespace: s.Namespace, WorkerID: s.ID, MaxInFlight: s.MaxInFlight, DeliveryTimeout: 2 * time.Second,
		HeartbeatEvery: time.Second, ReconnectDelay: 200 * time.Millisecond, DrainTimeout: 5 * time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Journal: d.keep,
	}
	for i, handler := range handlers {
		subscription := worker.Subscription{Handler: handler, Run: c.run}
		if i == 0 {
			subscription.MaxInFlight = s.HandlerLimit
		}
		config.Subscriptions = append(config.Subscriptions, subscription)
	}
	w, err := worker.New(config)
	if err != nil {
		return err
	}
	return errors.Join(w.Run(ctx), conn.Close(), d.file.Close())
}

// crew runs steps as their plans say.
type crew struct {
	client taskerv1.WorkerServiceClient
	diary  *diary
}

func (c *crew) run(ctx context.Context, run *worker.Run) worker.Outcome {
	var p plan
	if err := json.Unmarshal([]byte(run.Step.GetHandlerConfig()), &p); err != nil {
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "NO_PLAN", Message: err.Error()})
	}
	if p.WorkMS > 100 {
		run.Checkpoint(fmt.Sprintf(`{"dispatch": %d}`, run.Step.GetDispatch()))
	}
	timer := time.NewTimer(time.Duration(p.WorkMS) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil // revoked, or told to stop
	}
	failure := &taskerv1.Failure{ErrorCode: "PLANNED", Message: "as planned"}
	switch step := run.Step; {
	case p.Do == doFail && step.GetAttempt() <= p.Times:
		return worker.RetryableFailure(failure)
	case p.Do == doHint && step.GetAttempt() <= p.Times:
		return worker.RetryableFailure(failure, hint(step.GetAttempt()))
	case p.Do == doSkip && step.GetDispatch() == 1:
		return worker.RetryableFailure(failure, worker.NotCounted(), worker.RetryAfter(5*time.Millisecond))
	case p.Do == doHandBack && step.GetDispatch() == 1:
		return nil
	case p.Do == doHang && step.GetAttempt() == 1:
		return c.hang(ctx, step)
	case p.Do == doRefuse:
		return worker.PermanentFailure(failure)
	case p.Do == doRefuseBy:
		failure.ErrorCode = finalCode
		return worker.RetryableFailure(failure)
	case p.Do == doExhaust:
		return worker.RetryableFailure(failure)
	}
	return worker.Success(fmt.Sprintf(`{"step": %s, "dispatch": %d}`, run.Step.GetStepId(), run.Step.GetDispatch()))
}

// hint asks for a delay in one of the ways there are.
func hint(attempt int32) worker.Hint {
	switch attempt {
	case 1:
		return worker.RetryAfter(30 * time.Millisecond)
	case 2:
		return worker.RetryAfterHeader("0")
	default:
		return worker.RetryAfterHeader(time.Now().UTC().Add(time.Second).Format(http.TimeFormat))
	}
}

// hang waits until the run is revoked and reports a success all the same.
func (c *crew) hang(ctx context.Context, step *taskerv1.ReadyStep) worker.Outcome {
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), worker.ErrStopped) {
		return nil
	}
	report := worker.Success(`{"late": true}`)
	report.LeaseToken = step.GetLeaseToken()
	c.diary.keep(worker.ReportSent{Report: report})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		answer, err := c.client.ReportStepResult(call, report)
		cancel()
		entry := &taskerv1.BatchReportStepResultsEntry{Result: answer}
		if err != nil {
			entry.Status = entryStatus(err)
		}
		if code := status.Code(err); code == codes.OK || code == codes.FailedPrecondition {
			c.diary.keep(worker.ReportAnswered{Report: report, Answer: entry})
			return nil
		}
		time.Sleep(200 * time.Millisecond) // between two tries of a server that is away
	}
	return nil
}

func entryStatus(err error) *taskerv1.EntryStatus {
	st := status.Convert(err)
	entry := &taskerv1.EntryStatus{Code: int32(st.Code()), Message: st.Message()}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			entry.Reason = taskerv1.ErrorReason(taskerv1.ErrorReason_value["ERROR_REASON_"+info.GetReason()])
		}
	}
	return entry
}

// diary writes down what a worker sees. A worker whose journal cannot be written must not go on: what it did then would be
// done unseen.
type diary struct {
	file *history.Journal

	mu   sync.Mutex
	runs map[string]*taskerv1.ReadyStep // by lease token
}

func (d *diary) keep(event any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var entry history.Entry
	switch event := event.(type) {
	case worker.FrameReceived:
		step := event.Frame.GetStep()
		if step == nil {
			return
		}
		d.runs[step.GetLeaseToken()] = step
		entry = d.entry(history.FrameReceived, step.GetLeaseToken())
	case worker.ReportSent:
		entry = d.entry(history.ReportSent, event.Report.GetLeaseToken())
		entry.Outcome = outcomeOf(event.Report)
	case worker.ReportAnswered:
		entry = d.entry(history.ReportAnswered, event.Report.GetLeaseToken())
		entry.Outcome = outcomeOf(event.Report)
		entry.AlreadyRecorded = event.Answer.GetResult().GetAlreadyRecorded()
		entry.Reason = reasonOf(event.Answer.GetStatus())
	default:
		return
	}
	if err := d.file.Write(entry); err != nil {
		fmt.Fprintln(os.Stderr, "panic:", err)
		os.Exit(3)
	}
}

func (d *diary) entry(kind history.EntryKind, token string) history.Entry {
	entry := history.Entry{Kind: kind, Token: history.TokenDigest(token)}
	if step := d.runs[token]; step != nil {
		// The server prints its ids as decimal numbers; one that is none is for the checker to stumble on.
		entry.StepID, _ = strconv.ParseInt(step.GetStepId(), 10, 64)
		entry.Dispatch = int(step.GetDispatch())
	}
	return entry
}

// outcomeOf is a report's outcome as the history spells it.
func outcomeOf(report *taskerv1.ReportStepResultRequest) string {
	switch report.GetOutcome().(type) {
	case *taskerv1.ReportStepResultRequest_Success:
		return "success"
	case *taskerv1.ReportStepResultRequest_PermanentFailure:
		return "permanent_failure"
	default:
		return "retryable_failure"
	}
}

// reasonOf says why a report was refused; empty when it was not.
func reasonOf(st *taskerv1.EntryStatus) string {
	switch {
	case st.GetCode() == 0:
		return ""
	case st.GetReason() == taskerv1.ErrorReason_ERROR_REASON_UNSPECIFIED:
		return fmt.Sprintf("code %d", st.GetCode())
	}
	return st.GetReason().String()[len("ERROR_REASON_"):]
}
