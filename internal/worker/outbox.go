package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Bounds of one call. The server takes 1,000 entries and 3.5 MiB.
const (
	outboxBatch = 1000
	outboxBytes = 3 << 20
	outboxCall  = 15 * time.Second
)

// defectTries is how often a report is sent again that meets a defect in the server. Its lease is kept alive meanwhile, so for
// ever would keep the step from everybody else.
const defectTries = 10

// letter is a report, or without one a release, that waits for its answer.
type letter struct {
	run      *Run
	report   Outcome // nil hands the step back
	size     int
	sent     bool // the journal knows of it
	replaced bool // the server did not take the outcome, and this is the failure that stands for it
	defects  int
}

// outbox keeps what the server must hear until it has answered.
type outbox struct {
	w *Worker

	mu      sync.Mutex
	letters []*letter
	filled  chan struct{}

	// limit is the most letters of the next call. It shrinks when a call is refused as a whole, to find the letter that spoils it.
	limit int
	pause *backoff
}

func newOutbox(w *Worker) *outbox {
	return &outbox{w: w, filled: make(chan struct{}, 1), limit: outboxBatch, pause: newBackoff(retryFirst, retryMost)}
}

func (o *outbox) report(run *Run, outcome Outcome) {
	if size := proto.Size(outcome); size > outboxBytes {
		// No call can carry it, so it is refused here as the server would refuse it.
		o.replace(&letter{run: run, report: outcome}, &taskerv1.EntryStatus{
			Code:    int32(codes.InvalidArgument),
			Reason:  taskerv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE,
			Message: fmt.Sprintf("the outcome has %d bytes", size),
		})
		return
	}
	o.put(&letter{run: run, report: outcome})
}

func (o *outbox) release(run *Run) { o.put(&letter{run: run}) }

func (o *outbox) put(letters ...*letter) {
	o.mu.Lock()
	for _, letter := range letters {
		if letter.size = len(letter.run.Step.GetLeaseToken()); letter.report != nil {
			letter.size = proto.Size(letter.report)
		}
	}
	o.letters = append(o.letters, letters...)
	o.mu.Unlock()
	poke(o.filled)
}

// take removes the letters of one call: the oldest, and those after it of the same kind.
func (o *outbox) take() []*letter {
	o.mu.Lock()
	defer o.mu.Unlock()
	var batch, left []*letter
	bytes := 0
	for _, letter := range o.letters {
		fits := len(batch) < o.limit && bytes+letter.size <= outboxBytes
		alike := len(batch) == 0 || (letter.report == nil) == (batch[0].report == nil)
		if !fits || !alike {
			left = append(left, letter)
			continue
		}
		batch = append(batch, letter)
		bytes += letter.size
	}
	o.letters = left
	return batch
}

// work sends what waits until life ends.
func (o *outbox) work(life context.Context) {
	for {
		batch := o.take()
		if len(batch) == 0 {
			select {
			case <-o.filled:
				continue
			case <-life.Done():
				return
			}
		}
		least, repeat := o.send(life, batch)
		if repeat && !o.pause.wait(life, least) {
			return
		}
	}
}

// send makes one call. It puts back what must be sent again and says how long that has to wait.
func (o *outbox) send(life context.Context, batch []*letter) (least time.Duration, repeat bool) {
	ctx, cancel := context.WithTimeout(life, outboxCall)
	defer cancel()
	statuses, journal, err := o.call(ctx, batch)
	whole := statusOf(err)
	switch {
	case err == nil && len(statuses) == len(batch):
		o.limit = min(2*o.limit, outboxBatch)
		journal()
	case err == nil:
		whole = &taskerv1.EntryStatus{Code: int32(codes.Internal), Message: "the answer has not one entry for each of the request"}
	case judge(whole) == correct && len(batch) > 1:
		o.limit = max(1, len(batch)/2)
		o.put(batch...)
		return 0, false
	}
	if whole.GetCode() != int32(codes.OK) {
		statuses = make([]*taskerv1.EntryStatus, len(batch))
		for place := range statuses {
			statuses[place] = whole
		}
		o.w.cfg.Logger.WarnContext(ctx, "not answered", "letters", len(batch), "error", whole.GetMessage())
	}
	for place, letter := range batch {
		if o.answered(ctx, letter, statuses[place]) {
			continue
		}
		repeat = true
		least = max(least, atLeast(statuses[place].GetRetryDelay()))
	}
	if !repeat {
		o.pause.reset()
	}
	return least, repeat
}

// call sends letters of one kind and returns the status of each, with what is to be journaled of it.
func (o *outbox) call(ctx context.Context, batch []*letter) (statuses []*taskerv1.EntryStatus, journal func(), err error) {
	if batch[0].report == nil {
		request := &taskerv1.ReleaseStepsRequest{}
		for _, letter := range batch {
			request.Releases = append(request.Releases, &taskerv1.StepRelease{LeaseToken: letter.run.Step.GetLeaseToken()})
		}
		answer, err := o.w.cfg.Client.ReleaseSteps(ctx, request)
		for _, entry := range answer.GetEntries() {
			statuses = append(statuses, entry.GetStatus())
		}
		return statuses, func() {
			for place, entry := range answer.GetEntries() {
				if o.final(batch[place], entry.GetStatus()) {
					o.w.journal(ReleaseAnswered{Answer: entry})
				}
			}
		}, err
	}
	request := &taskerv1.BatchReportStepResultsRequest{}
	for _, letter := range batch {
		if !letter.sent {
			letter.sent = true
			o.w.journal(ReportSent{Report: letter.report})
		}
		request.Reports = append(request.Reports, letter.report)
	}
	answer, err := o.w.cfg.Client.BatchReportStepResults(ctx, request)
	for _, entry := range answer.GetEntries() {
		statuses = append(statuses, entry.GetStatus())
	}
	return statuses, func() {
		for place, entry := range answer.GetEntries() {
			if o.final(batch[place], entry.GetStatus()) {
				o.w.journal(ReportAnswered{Report: batch[place].report, Answer: entry})
			}
		}
	}, err
}

// final says whether a status ends its letter.
func (o *outbox) final(letter *letter, status *taskerv1.EntryStatus) bool {
	if judge(status) != again {
		return true
	}
	return code(status) == codes.Internal && letter.defects+1 >= defectTries
}

// answered settles a letter's run, or puts the letter back and says false.
func (o *outbox) answered(ctx context.Context, letter *letter, status *taskerv1.EntryStatus) bool {
	log := o.w.cfg.Logger.With("step_id", letter.run.Step.GetStepId(), "step", letter.run.Step.GetStepName(), "dispatch", letter.run.Step.GetDispatch())
	if !o.final(letter, status) {
		if code(status) == codes.Internal {
			letter.defects++
		}
		o.put(letter)
		return false
	}
	switch judge(status) {
	case done:
		log.DebugContext(ctx, "answered")
	case correct:
		if letter.report != nil && !letter.replaced {
			o.replace(letter, status)
			return true
		}
		fallthrough
	default:
		log.WarnContext(ctx, "refused", "code", code(status).String(), "reason", status.GetReason().String(), "error", status.GetMessage())
	}
	o.w.settle(letter.run)
	return true
}

// replace reports a permanent failure in the place of an outcome that the server cannot take: to run the step again would
// only bring the same outcome.
func (o *outbox) replace(refused *letter, status *taskerv1.EntryStatus) {
	message := "the outcome was refused: " + status.GetMessage()
	for _, violation := range status.GetFieldViolations() {
		message += fmt.Sprintf("; %s: %s", violation.GetField(), violation.GetDescription())
	}
	failure := PermanentFailure(&taskerv1.Failure{
		ErrorCode: refusedCode(status.GetReason()),
		Message:   message,
	})
	failure.LeaseToken = refused.run.Step.GetLeaseToken()
	failure.RunDuration = refused.report.GetRunDuration()
	o.put(&letter{run: refused.run, report: failure, replaced: true})
}

func refusedCode(reason taskerv1.ErrorReason) string {
	if reason == taskerv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE {
		return "OUTCOME_TOO_LARGE"
	}
	return "OUTCOME_INVALID"
}
