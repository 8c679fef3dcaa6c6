package rpc

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// Limits of what is said about a failure. Longer texts are cut: a failure must never fail to be reported for its length.
const (
	maxErrorWord = 255
	maxErrorText = 4096
)

// report is one outcome, decoded. req has passed the contract's rules.
func report(req *pb.ReportStepResultRequest) (task.Report, error) {
	token, err := leaseToken(req.GetLeaseToken())
	if err != nil {
		return task.Report{}, err
	}
	r := task.Report{Token: token, RunDuration: runDuration(req.GetRunDuration()), Observations: observations(req.GetObservations())}
	switch o := req.GetOutcome().(type) {
	case *pb.ReportStepResultRequest_Success:
		r.Outcome, r.Results = task.Success, orObject(o.Success.GetResults())
		err = task.CheckObject("success.results", r.Results, maxPayload)
	case *pb.ReportStepResultRequest_PermanentFailure:
		r.Outcome = task.PermanentFailure
		r.Failure, err = failure("permanent_failure.failure", o.PermanentFailure.GetFailure())
	case *pb.ReportStepResultRequest_RetryableFailure:
		r.Outcome, r.Skip = task.RetryableFailure, o.RetryableFailure.GetAccounting() == pb.Accounting_ACCOUNTING_SKIP
		r.Hint, r.Blame = hint(o.RetryableFailure), blame(o.RetryableFailure)
		// What is not the dependency's fault says nothing of it, whatever its reach.
		r.ReachCircuit = circuitReach(req) && r.Blame == task.BlameDependency
		r.Failure, err = failure("retryable_failure.failure", o.RetryableFailure.GetFailure())
	default:
		err = task.Invalid("outcome", "is required")
	}
	r.Digest = outcomeDigest(&r, circuitReach(req))
	return r, err
}

// leaseToken reads a token. One that no server can have issued is of a lease that nobody holds.
func leaseToken(text string) (task.Token, error) {
	token, ok := task.ParseToken(text)
	if !ok {
		return token, task.Refuse(task.LeaseLost, "this is no lease token that is in force")
	}
	return token, nil
}

func failure(field string, f *pb.Failure) (task.Failure, error) {
	return task.Failure{
		ErrorCode: errorText(f.GetErrorCode(), maxErrorWord), Message: errorText(f.GetMessage(), maxErrorText),
		ErrorClass: errorText(f.GetErrorClass(), maxErrorWord), HTTPStatus: int(f.GetHttpStatus()),
		StackTrace: errorText(f.GetStackTrace(), maxErrorText), Details: f.GetDetails(),
	}, checkObject(field+".details", f.GetDetails(), maxPayload)
}

// errorText is a text as it can be kept: without NUL, which Postgres cannot store, and not too long.
func errorText(s string, limit int) string {
	return clip(strings.ReplaceAll(s, "\x00", "\uFFFD"), limit)
}

// hint is when the worker wants to be asked again.
func hint(f *pb.StepRetryableFailure) task.Hint {
	switch h := f.GetRetryHint().(type) {
	case *pb.StepRetryableFailure_RetryAfter:
		return task.Hint{Source: task.FromRetryAfter, After: span(h.RetryAfter)}
	case *pb.StepRetryableFailure_RetryAt:
		return task.Hint{Source: task.FromRetryAt, At: instant(h.RetryAt)}
	case *pb.StepRetryableFailure_RetryAfterHeader:
		return task.ParseRetryAfter(h.RetryAfterHeader, time.Now())
	}
	return task.Hint{}
}

// circuitReach tells whether the failure was said to reach the step's whole circuit.
func circuitReach(req *pb.ReportStepResultRequest) bool {
	return req.GetRetryableFailure().GetReach() == pb.Reach_REACH_CIRCUIT
}

// blame is whose fault the failure is.
func blame(f *pb.StepRetryableFailure) task.Blame {
	if word := blames.word(f.GetBlame()); word != "" {
		return task.Blame(word)
	}
	return task.BlameDependency
}

// maxRun is the longest run that is believed.
const maxRun = 365 * 24 * time.Hour

// runDuration is how long the run took; 0 where the worker did not say, or said what cannot be.
func runDuration(d *durationpb.Duration) time.Duration {
	if d == nil || d.CheckValid() != nil || d.AsDuration() < 0 || d.AsDuration() > maxRun {
		return 0
	}
	return d.AsDuration()
}

// observations are what the run saw of circuits, each of them named once.
func observations(list []*pb.CircuitObservation) []task.CircuitObservation {
	var seen []task.CircuitObservation
	for _, o := range list {
		k := slices.IndexFunc(seen, func(x task.CircuitObservation) bool { return x.Circuit == o.GetCircuit() })
		if k < 0 {
			k, seen = len(seen), append(seen, task.CircuitObservation{Circuit: o.GetCircuit()})
		}
		seen[k].Calls += int(o.GetCalls())
		seen[k].Failed += int(o.GetFailedCalls())
		seen[k].Slow += int(o.GetSlowCalls())
	}
	return seen
}

// outcomeDigest tells one outcome from another: two reports of one token with equal digests are one report, sent twice. It is
// taken over what was decoded, so that a message that is encoded differently, or by a later release, gives the same. The
// run's duration and what it saw of circuits are not part of the outcome. A blame that is the default leaves no trace: releases
// that knew none made the same digest.
func outcomeDigest(r *task.Report, circuit bool) [32]byte {
	w := make(digested, 0, 256) // as much as most successes have
	w.text("outcome/1", string(r.Outcome), r.Results)
	w.text(r.Failure.ErrorCode, r.Failure.Message, r.Failure.ErrorClass, r.Failure.StackTrace, r.Failure.Details)
	w.number(int64(r.Failure.HTTPStatus))
	w.text(string(r.Hint.Source))
	if r.Hint.After != nil {
		w.number(r.Hint.After.Microseconds())
	}
	if r.Hint.At != nil {
		w.number(r.Hint.At.UnixMicro())
	}
	w.flag(r.Skip)
	w.flag(circuit)
	if r.Blame != "" && r.Blame != task.BlameDependency {
		w.text(string(r.Blame))
	}
	return sha256.Sum256(w)
}

// digested is values with their lengths, so that no two lists of them are the same bytes. Hashed in one piece they cost a
// quarter of what they cost one by one.
type digested []byte

func (d *digested) text(parts ...string) {
	for _, s := range parts {
		d.number(int64(len(s)))
		*d = append(*d, s...)
	}
}

func (d *digested) number(n int64) {
	*d = binary.BigEndian.AppendUint64(*d, uint64(n)) //nolint:gosec // the bits, whatever they mean
}

func (d *digested) flag(b bool) {
	if b {
		d.number(1)
		return
	}
	d.number(0)
}

// reportedParts are the messages of an answer in one piece of memory, of which a busy server makes one for each report.
type reportedParts struct {
	entry  pb.BatchReportStepResultsEntry
	status pb.EntryStatus
	result pb.ReportStepResultResponse
	step   pb.ReportedStep
}

// reportedEntry is what a report of a batch did.
func reportedEntry(r *task.Report, a *task.Reported) *pb.BatchReportStepResultsEntry {
	x := &reportedParts{}
	x.entry.Status, x.entry.Result = &x.status, &x.result
	x.result.Step = &x.step
	tellReported(&x.result, r, a)
	return &x.entry
}

// reported is what a report did.
func reported(r *task.Report, a *task.Reported) *pb.ReportStepResultResponse {
	resp := &pb.ReportStepResultResponse{Step: &pb.ReportedStep{}}
	tellReported(resp, r, a)
	return resp
}

func tellReported(resp *pb.ReportStepResultResponse, r *task.Report, a *task.Reported) {
	step := resp.GetStep()
	step.StepId, step.TaskId = idTexts(a.Step)
	step.State, step.ParkedReason = stepStates.value(string(a.State)), parkedReasons.value(a.ParkedReason)
	step.Attempts, step.RetryLimit, step.LostLeases = count(a.Attempts), count(a.RetryLimit), count(a.LostLeases)
	step.Dispatch, step.Epoch = r.Token.Dispatch, count(a.Epoch)
	resp.AlreadyRecorded, resp.ChangedCircuits = a.AlreadyRecorded, a.ChangedCircuits
	resp.AppliedDelay, resp.DelaySource, resp.DelayClamped = duration(a.AppliedDelay), delaySources.value(string(a.DelaySource)), a.DelayClamped
	resp.NextRetryAt = timestamp(a.NextRetryAt)
	switch {
	case a.ReachedCircuit:
		resp.AppliedReach = pb.Reach_REACH_CIRCUIT
	case r.Outcome == task.RetryableFailure:
		resp.AppliedReach = pb.Reach_REACH_STEP
	}
}

// idTexts are a step's id and its task's as the contract prints them, in one text.
func idTexts(id task.StepID) (step, of string) {
	b := strconv.AppendInt(make([]byte, 0, 2*maxIDText), int64(id), 10)
	n := len(b)
	text := string(strconv.AppendInt(b, int64(id.Task()), 10))
	return text[:n], text[n:]
}

// maxIDText is the length of the longest id.
const maxIDText = len("-9223372036854775808")
