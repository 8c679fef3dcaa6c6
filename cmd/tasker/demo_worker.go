package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/taskerhq/tasker/examples/registration"
	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/worker"
)

// newDemoWorker makes the command that the demo runs as its workers in Go.
func newDemoWorker(c *cli) *cobra.Command {
	var (
		address, namespace, id, journal, defect string
		handlers                                []string
		services                                map[string]string
		slots                                   int
	)
	cmd := &cobra.Command{
		Use:    "worker",
		Short:  "Work on the demo's steps",
		Hidden: true,
		Args:   exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			conn, err := worker.Dial(address, insecure.NewCredentials())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, conn.Close()) }()
			ctx, cancel := context.WithCancelCause(cmd.Context())
			defer cancel(nil)
			config := worker.Config{
				Client:      taskerv1.NewWorkerServiceClient(conn),
				Namespace:   namespace,
				WorkerID:    id,
				MaxInFlight: slots,
				ClientInfo:  "registration-go",
				Logger:      slog.New(slog.NewTextHandler(c.stderr, nil)),
			}
			caller := &registration.Caller{
				URLs:          services,
				Client:        &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: slots}},
				DropHints:     defect == "ignore_retry_after",
				RetryRefusals: defect == "retry_refused",
				Impatient:     defect == "call_again",
			}
			if config.Subscriptions, err = caller.Subscriptions(handlers...); err != nil {
				return err
			}
			keeper := &journalKeeper{runs: make(map[string]*taskerv1.ReadyStep), fail: cancel}
			if journal != "" {
				if keeper.file, err = history.OpenJournal(journal); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, keeper.file.Close()) }()
				config.Journal = keeper.keep
			}
			w, err := worker.New(config)
			if err != nil {
				return err
			}
			if err := w.Run(ctx); err != nil {
				return err
			}
			return keeper.failed()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&address, "address", "", "the server's `HOST:PORT`")
	flags.StringVar(&namespace, "namespace", "", "the `NAMESPACE` to work for")
	flags.StringVar(&id, "worker-id", "", "the worker's `NAME`")
	flags.StringVar(&journal, "journal", "", "the `FILE` to write down in what is seen")
	flags.StringVar(&defect, "defect", "", "a planted `DEFECT`")
	flags.StringArrayVar(&handlers, "handler", nil, "a `STEP` to take")
	flags.StringToStringVar(&services, "service", nil, "a service as `NAME=URL`")
	flags.IntVar(&slots, "max-in-flight", workerSlots, "the most steps at once")
	return cmd
}

// journalKeeper writes what a worker saw into its journal. A worker whose journal cannot be written must not go on: what it
// does then would be done unseen.
type journalKeeper struct {
	file *history.Journal
	fail context.CancelCauseFunc

	mu   sync.Mutex
	runs map[string]*taskerv1.ReadyStep // by lease token
	err  error
}

func (k *journalKeeper) failed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

func (k *journalKeeper) keep(event any) {
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
		entry.Outcome = outcomeWord(event.Report)
	case worker.ReportAnswered:
		entry = k.entry(history.ReportAnswered, event.Report.GetLeaseToken())
		entry.Outcome = outcomeWord(event.Report)
		entry.AlreadyRecorded = event.Answer.GetResult().GetAlreadyRecorded()
		if status := event.Answer.GetStatus(); status.GetCode() != 0 {
			entry.Reason = reasonWord(status)
		}
		delete(k.runs, event.Report.GetLeaseToken())
	default:
		return
	}
	if err := k.file.Write(entry); err != nil && k.err == nil {
		k.err = err
		k.fail(err)
	}
}

// entry begins an entry about a run.
func (k *journalKeeper) entry(kind history.EntryKind, token string) history.Entry {
	entry := history.Entry{Kind: kind, At: time.Now(), Token: history.TokenDigest(token)}
	if step := k.runs[token]; step != nil {
		// The server prints its ids as decimal numbers; one that is none is for the checker to stumble on.
		entry.StepID, _ = strconv.ParseInt(step.GetStepId(), 10, 64)
		entry.Dispatch = int(step.GetDispatch())
	}
	return entry
}

// outcomeWord is a report's outcome, as the history spells it.
func outcomeWord(report *taskerv1.ReportStepResultRequest) string {
	switch report.GetOutcome().(type) {
	case *taskerv1.ReportStepResultRequest_Success:
		return "success"
	case *taskerv1.ReportStepResultRequest_PermanentFailure:
		return "permanent_failure"
	default:
		return "retryable_failure"
	}
}

// reasonWord says why an entry was refused; never empty.
func reasonWord(status *taskerv1.EntryStatus) string {
	if status.GetReason() == taskerv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return fmt.Sprintf("code %d", status.GetCode())
	}
	return status.GetReason().String()[len("ERROR_REASON_"):]
}
