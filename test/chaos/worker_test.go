package chaos_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/worker"
)

// handlers are the kinds of work there are.
var handlers = []string{"alpha", "beta", "gamma"}

// work is the role of a worker: it writes down every frame before it acts on it and every report before it is sent.
func work(ctx context.Context, conn *grpc.ClientConn) error {
	journal, err := history.OpenJournal(os.Getenv("CHAOS_JOURNAL"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k := &keeper{journal: journal, fail: cancel, runs: map[string]*taskerv1.ReadyStep{}}
	c := worker.Config{
		Client: taskerv1.NewWorkerServiceClient(conn), WorkerID: os.Getenv("CHAOS_NAME"), MaxInFlight: 8,
		DeliveryTimeout: time.Second, HeartbeatEvery: 500 * time.Millisecond, ReconnectDelay: 200 * time.Millisecond,
		DrainTimeout: 5 * time.Second, Journal: k.keep, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	for _, h := range handlers {
		c.Subscriptions = append(c.Subscriptions, worker.Subscription{Handler: h, Run: run})
	}
	w, err := worker.New(c)
	if err != nil {
		return err
	}
	if err := w.Run(ctx); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && k.err != nil {
		return cause
	}
	return journal.Close()
}

// run does a step's work: most runs succeed soon; the others end in every way that a run can.
func run(ctx context.Context, r *worker.Run) worker.Outcome {
	rest := rand.N(15 * time.Millisecond)
	n := rand.IntN(1000)
	switch {
	case n < 10:
		rest = 1500 * time.Millisecond // longer than the timeout that some steps have
	case n < 60:
		rest = rand.N(300 * time.Millisecond)
	}
	if n%20 == 0 {
		r.Checkpoint(fmt.Sprintf(`{"at": %d}`, n))
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	busy := &taskerv1.Failure{ErrorCode: "BUSY", Message: "try again"}
	switch n = rand.IntN(1000); {
	case n < 60:
		return worker.RetryableFailure(busy)
	case n < 80:
		return worker.RetryableFailure(busy, worker.RetryAfter(rand.N(200*time.Millisecond)))
	case n < 90:
		return worker.RetryableFailure(busy, worker.RetryAfterHeader("0"))
	case n < 95:
		return worker.RetryableFailure(busy, worker.RetryAfterHeader(time.Now().UTC().Add(time.Second).Format("Mon, 02 Jan 2006 15:04:05 GMT")))
	case n < 105:
		return worker.RetryableFailure(busy, worker.NotCounted())
	case n < 110:
		return worker.RetryableFailure(&taskerv1.Failure{ErrorCode: "FINAL"})
	case n < 115:
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "BAD"})
	case n < 125:
		return nil // handed back
	}
	return worker.Success(fmt.Sprintf(`{"n": %d}`, n))
}

// keeper writes what a worker saw into its journal. A worker whose journal cannot be written must not go on.
type keeper struct {
	journal *history.Journal
	fail    context.CancelCauseFunc

	mu   sync.Mutex
	runs map[string]*taskerv1.ReadyStep // by lease token
	err  error
}

func (k *keeper) keep(event any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var entry history.Entry
	switch event := event.(type) {
	case worker.FrameReceived:
		step := event.Frame.GetStep()
		if step == nil {
			return
		}
		k.runs[step.GetLeaseToken()] = step
		entry = k.entry(history.FrameReceived, step.GetLeaseToken())
	case worker.ReportSent:
		entry = k.entry(history.ReportSent, event.Report.GetLeaseToken())
		entry.Outcome = outcomeOf(event.Report)
	case worker.ReportAnswered:
		entry = k.entry(history.ReportAnswered, event.Report.GetLeaseToken())
		entry.Outcome = outcomeOf(event.Report)
		entry.AlreadyRecorded = event.Answer.GetResult().GetAlreadyRecorded()
		if s := event.Answer.GetStatus(); s.GetCode() != 0 {
			entry.Reason = strings.TrimPrefix(s.GetReason().String(), "ERROR_REASON_")
		}
		delete(k.runs, event.Report.GetLeaseToken())
	default:
		return
	}
	if err := k.journal.Write(entry); err != nil && k.err == nil {
		k.err = err
		k.fail(err)
	}
}

func (k *keeper) entry(kind history.EntryKind, token string) history.Entry {
	e := history.Entry{Kind: kind, Token: history.TokenDigest(token)}
	if step := k.runs[token]; step != nil {
		e.StepID, _ = strconv.ParseInt(step.GetStepId(), 10, 64) // 0, which the checker stumbles on, if it is none
		e.Dispatch = int(step.GetDispatch())
	}
	return e
}

func outcomeOf(r *taskerv1.ReportStepResultRequest) string {
	switch r.GetOutcome().(type) {
	case *taskerv1.ReportStepResultRequest_Success:
		return "success"
	case *taskerv1.ReportStepResultRequest_PermanentFailure:
		return "permanent_failure"
	}
	return "retryable_failure"
}
