package rpc

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// maxCheckpoint is the limit of a checkpoint.
const maxCheckpoint = 256 << 10

// capabilities name what this server does beyond the first version of the contract.
var capabilities = []string{"circuits"}

type workerService struct {
	pb.UnimplementedWorkerServiceServer
	*Services
	lastBeat atomic.Pointer[lastBeat]
}

// ReadySteps streams steps to a worker.
func (s *workerService) ReadySteps(req *pb.ReadyStepsRequest, stream grpc.ServerStreamingServer[pb.ReadyStepsResponse]) error {
	ctx := stream.Context()
	var work *engine.Stream
	err := apart(func() (err error) {
		work, err = s.openStream(ctx, req, stream)
		return err
	})
	if work != nil {
		defer work.Close()
	}
	if err != nil {
		return err
	}
	// Serve waits for the one thing that wakes it, so that a stream that rests keeps little.
	detach := context.AfterFunc(ctx, func() { work.End(ctx.Err()) })
	defer detach()
	old := time.AfterFunc(s.streamAge(), func() {
		work.Drain()
		// A worker that does not move in time finds its stream ended with OK, which says the same.
		time.AfterFunc(s.settings.DrainGrace, func() { work.End(nil) })
	})
	defer old.Stop()
	return work.Serve(func(f engine.Frame) error { return s.sendFrame(ctx, stream, &f) })
}

// openStream opens a worker's stream and tells it so. The stream is to be closed even if that fails.
func (s *workerService) openStream(ctx context.Context, req *pb.ReadyStepsRequest, stream grpc.ServerStreamingServer[pb.ReadyStepsResponse]) (*engine.Stream, error) {
	reg, strange := registered(caller(ctx).Namespace, req)
	reg.HeartbeatInterval = req.GetHeartbeatInterval().AsDuration()
	reg.Connection = connection(ctx)
	work, err := s.engine.Open(ctx, reg)
	if err != nil {
		return nil, err
	}
	return work, stream.Send(s.openedFrame(work.Opened(), strange))
}

var connectionSeed = maphash.MakeSeed()

// connection is a number of the connection that a call came by. Two may have the same.
func connection(ctx context.Context) uint64 {
	from, ok := peer.FromContext(ctx)
	if !ok || from.Addr == nil {
		return 0
	}
	return maphash.String(connectionSeed, from.Addr.String())
}

// streamAge is how old a stream gets: not all that were opened together shall move together.
func (s *workerService) streamAge() time.Duration {
	if s.settings.StreamAge == 0 {
		return 100 * 365 * 24 * time.Hour
	}
	return time.Duration(float64(s.settings.StreamAge) * (0.9 + 0.2*rand.Float64())) //nolint:gosec // spread, not a secret
}

func (s *workerService) sendFrame(ctx context.Context, stream grpc.ServerStreamingServer[pb.ReadyStepsResponse], f *engine.Frame) error {
	if f.Heartbeat {
		frame, err := s.beat(f.InFlight)
		if err != nil {
			return err
		}
		return stream.SendMsg(frame)
	}
	err := stream.Send(s.frame(f))
	if err != nil {
		s.undelivered(ctx, f.Step)
	}
	return err
}

// beat is an idle frame.
func (s *workerService) beat(inFlight int) (*encoded, error) {
	now := s.engine.Now()
	if last := s.lastBeat.Load(); last != nil && last.inFlight == inFlight && now.Sub(last.at).Abs() < beatAge {
		return last.frame, nil
	}
	wire, err := proto.Marshal(&pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Heartbeat{
		Heartbeat: &pb.StreamHeartbeat{ServerTime: timestamppb.New(now), InFlight: count(inFlight)},
	}})
	if err != nil {
		return nil, fmt.Errorf("encoding an idle frame: %w", err)
	}
	frame := &encoded{wire}
	s.lastBeat.Store(&lastBeat{frame: frame, inFlight: inFlight, at: now})
	return frame, nil
}

// beatAge is how old the server_time of an idle frame may be. A hundred streams get theirs at once, and most of these are alike.
const beatAge = time.Millisecond

// lastBeat is the idle frame that was made last.
type lastBeat struct {
	frame    *encoded
	inFlight int
	at       time.Time // its server_time
}

// undelivered hands back a step that could not be sent. If that fails too, its delivery lease runs out.
func (s *workerService) undelivered(ctx context.Context, step *task.ReadyStep) {
	if step == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.engine.Release(ctx, []engine.Release{{Token: step.Token}})[0]; err != nil {
		s.log.DebugContext(ctx, "a step could not be sent, nor handed back", "step_id", step.Token.Step.String(), "error", loggable(err))
	}
}

func (s *workerService) openedFrame(o engine.Opened, strange []string) *pb.ReadyStepsResponse {
	return &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Opened{Opened: &pb.SessionOpened{
		HeartbeatInterval: durationpb.New(o.HeartbeatInterval), DeliveryTimeout: durationpb.New(o.DeliveryTimeout), ServerTime: s.now(),
		LostLeaseTokens: lostTokens(o.Lost, strange), Capabilities: capabilities, InFlight: count(o.InFlight),
	}}}
}

func (s *workerService) frame(f *engine.Frame) *pb.ReadyStepsResponse {
	switch {
	case f.Step != nil:
		return stepFrame(f.Step)
	case f.Revoked != nil:
		return &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Revoked{Revoked: &pb.LeaseRevoked{
			LeaseToken: f.Revoked.Token.String(), Reason: revokeReasons.value(string(f.Revoked.Reason)), StepId: f.Revoked.Token.Step.String(),
		}}}
	case f.Notices != nil:
		notice := &pb.DispatchNotice{}
		for i := range f.Notices {
			notice.Blockers = append(notice.Blockers, blocker(&f.Notices[i]))
		}
		return &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Notice{Notice: notice}}
	default: // it is draining: idle frames are beat's
		return &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Draining{Draining: &pb.ServerDraining{
			GraceDuration: durationpb.New(s.settings.DrainGrace),
		}}}
	}
}

// PollReadySteps gives steps in the answer of a call.
func (s *workerService) PollReadySteps(ctx context.Context, req *pb.PollReadyStepsRequest) (*pb.PollReadyStepsResponse, error) {
	reg, strange := registered(caller(ctx).Namespace, req)
	most := min(int(req.GetMaxInFlight()), 1000)
	if req.MaxSteps != nil {
		most = int(req.GetMaxSteps())
	}
	steps, opened, err := s.engine.Poll(ctx, reg, most, pollWait(ctx, req.GetWaitDuration()))
	if err != nil {
		return nil, err
	}
	lost := lostTokens(opened.Lost, strange)
	sent := s.fitting(ctx, steps, maxBatch-bytesOf(lost))
	var blockers []*pb.DispatchBlocker
	for i := range opened.Notices {
		blockers = append(blockers, blocker(&opened.Notices[i]))
	}
	return &pb.PollReadyStepsResponse{
		Steps: sent, LostLeaseTokens: lost, Blockers: blockers, ServerTime: s.now(), Capabilities: capabilities,
		InFlight: count(opened.InFlight + len(sent)),
	}, nil
}

// pollLeast is the time a poll that does not want to wait needs to be given what is there.
const pollLeast = 100 * time.Millisecond

// pollWait is how long a poll waits: as long as it wants to, but not past its own deadline, which would lose what it got.
func pollWait(ctx context.Context, wanted *durationpb.Duration) time.Duration {
	wait := max(wanted.AsDuration(), pollLeast)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)*9/10)
	}
	return max(wait, 0)
}

func bytesOf(texts []string) (n int) {
	for _, s := range texts {
		n += len(s) + 3
	}
	return n
}

// fitting are the steps that one answer can carry, one at least; the others go back.
func (s *workerService) fitting(ctx context.Context, steps []*task.ReadyStep, room int) []*pb.ReadyStep {
	var (
		sent []*pb.ReadyStep
		back []engine.Release
	)
	for _, step := range steps {
		m := readyStep(step)
		if room -= proto.Size(m); room < 0 && len(sent) > 0 {
			back = append(back, engine.Release{Token: step.Token})
			continue
		}
		sent = append(sent, m)
	}
	if len(back) > 0 {
		for _, err := range s.engine.Release(ctx, back) {
			if err != nil {
				s.log.DebugContext(ctx, "a step that did not fit an answer could not be handed back", "error", loggable(err))
			}
		}
	}
	return sent
}

// ReportStepResult records how a run ended.
func (s *workerService) ReportStepResult(ctx context.Context, req *pb.ReportStepResultRequest) (*pb.ReportStepResultResponse, error) {
	r, err := report(req)
	if err != nil {
		return nil, err
	}
	answer := s.engine.Report(ctx, []task.Report{r})[0]
	if answer.Err != nil {
		return nil, answer.Err
	}
	return reported(&r, answer.Reported), nil
}

// BatchReportStepResults records how many runs ended, each judged alone.
func (s *workerService) BatchReportStepResults(ctx context.Context, req *pb.BatchReportStepResultsRequest) (*pb.BatchReportStepResultsResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	var (
		n       = len(req.GetReports())
		entries = make([]*pb.BatchReportStepResultsEntry, n)
		reports = make([]task.Report, 0, n)
		places  = make([]int, 0, n)
	)
	for i, one := range req.GetReports() {
		r, err := s.checkedReport(one)
		if err != nil {
			entries[i] = &pb.BatchReportStepResultsEntry{Status: s.entry(ctx, pb.WorkerService_BatchReportStepResults_FullMethodName, err)}
			continue
		}
		reports, places = append(reports, r), append(places, i)
	}
	for k, answer := range s.engine.Report(ctx, reports) {
		if answer.Err == nil {
			entries[places[k]] = reportedEntry(&reports[k], answer.Reported)
			continue
		}
		entries[places[k]] = &pb.BatchReportStepResultsEntry{Status: s.entry(ctx, pb.WorkerService_BatchReportStepResults_FullMethodName, answer.Err)}
	}
	return &pb.BatchReportStepResultsResponse{Entries: entries}, nil
}

func (s *workerService) checkedReport(one *pb.ReportStepResultRequest) (task.Report, error) {
	if err := s.rules.check(one); err != nil {
		return task.Report{}, err
	}
	return report(one)
}

// entry is the status of one entry of a batch.
func (s *workerService) entry(ctx context.Context, method string, err error) *pb.EntryStatus {
	if err == nil {
		return &pb.EntryStatus{}
	}
	return refuse(ctx, s.log, method, err).entry()
}

// HeartbeatSteps extends leases.
func (s *workerService) HeartbeatSteps(ctx context.Context, req *pb.HeartbeatStepsRequest) (*pb.HeartbeatStepsResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	entries := make([]*pb.HeartbeatStepsEntry, len(req.GetHeartbeats()))
	var (
		beats  []store.Beat
		places []int
		named  = once{}
	)
	for i, one := range req.GetHeartbeats() {
		entries[i] = &pb.HeartbeatStepsEntry{LeaseToken: one.GetLeaseToken(), Status: &pb.EntryStatus{}}
		token, err := s.checkedToken(one, named)
		if err == nil && one.Checkpoint != nil {
			err = task.CheckObject("checkpoint", one.GetCheckpoint(), maxCheckpoint)
		}
		if err != nil {
			entries[i].Status = s.entry(ctx, pb.WorkerService_HeartbeatSteps_FullMethodName, err)
			continue
		}
		beats, places = append(beats, store.Beat{Token: token, Checkpoint: one.GetCheckpoint()}), append(places, i)
	}
	answers, err := s.engine.Heartbeat(ctx, beats)
	if err != nil {
		return nil, err
	}
	for k, answer := range answers {
		s.beaten(ctx, entries[places[k]], beats[k].Token, answer)
	}
	return &pb.HeartbeatStepsResponse{Entries: entries, ServerTime: s.now()}, nil
}

func (s *workerService) beaten(ctx context.Context, entry *pb.HeartbeatStepsEntry, token task.Token, answer engine.BeatAnswer) {
	if answer.Lost {
		reason := revokeReasons.value(string(answer.Reason))
		entry.RevokeReason = reason
		entry.Status = s.entry(ctx, pb.WorkerService_HeartbeatSteps_FullMethodName, leaseLost(token, answer.Reason))
		return
	}
	x := answer.Extended
	entry.LeaseExpiresAt = timestamppb.New(x.Until)
	entry.HeartbeatBy = durationpb.New(max(x.Until.Sub(s.engine.Now()), 0) / 3)
	entry.Deadline = timestamp(earlier(x.RunUntil, x.StopAt))
}

func leaseLost(token task.Token, reason task.RevokeReason) *task.Error {
	e := task.Refuse(task.LeaseLost, "the lease is lost: stop the run and report nothing").
		With("step_id", token.Step.String()).With("dispatch", fmt.Sprint(token.Dispatch))
	if word := revokeReasons.value(string(reason)); word != pb.RevokeReason_REVOKE_REASON_UNSPECIFIED {
		e = e.With("revoke_reason", word.String()[len("REVOKE_REASON_"):])
	}
	return e
}

func earlier(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.Before(*a) {
		return b
	}
	return a
}

// named is an entry of a batch about a lease.
type named interface {
	proto.Message
	GetLeaseToken() string
}

// once remembers the tokens of a batch: each may be named once.
type once map[task.Token]bool

func (s *workerService) checkedToken(one named, seen once) (task.Token, error) {
	if err := s.rules.check(one); err != nil {
		return task.Token{}, err
	}
	token, err := leaseToken(one.GetLeaseToken())
	if err == nil && seen[token] {
		err = task.Invalid("lease_token", "is named twice in this call")
	}
	seen[token] = true
	return token, err
}

// ReleaseSteps hands steps back.
func (s *workerService) ReleaseSteps(ctx context.Context, req *pb.ReleaseStepsRequest) (*pb.ReleaseStepsResponse, error) {
	entries := make([]*pb.ReleaseStepsEntry, len(req.GetReleases()))
	var (
		releases []engine.Release
		places   []int
		named    = once{}
	)
	for i, one := range req.GetReleases() {
		entries[i] = &pb.ReleaseStepsEntry{LeaseToken: one.GetLeaseToken()}
		token, err := s.checkedToken(one, named)
		entries[i].Status = s.entry(ctx, pb.WorkerService_ReleaseSteps_FullMethodName, err)
		if err == nil {
			releases, places = append(releases, engine.Release{Token: token, Delay: one.GetDelay().AsDuration()}), append(places, i)
		}
	}
	for k, err := range s.engine.Release(ctx, releases) {
		entries[places[k]].Status = s.entry(ctx, pb.WorkerService_ReleaseSteps_FullMethodName, err)
	}
	return &pb.ReleaseStepsResponse{Entries: entries}, nil
}

// DrainWorker stops grants to an instance and waits for its leases to end.
func (s *workerService) DrainWorker(ctx context.Context, req *pb.DrainWorkerRequest) (*pb.DrainWorkerResponse, error) {
	deadline := time.Now()
	if req.GetDeadline() != nil {
		// The request's instant is on the database's clock, the engine waits by this machine's.
		deadline = deadline.Add(min(max(req.GetDeadline().AsTime().Sub(s.engine.Now()), 0), drainHorizon))
	}
	left, err := s.engine.Drain(ctx, caller(ctx).Namespace, req.GetWorkerId(), req.GetInstanceId(), deadline)
	if err != nil {
		return nil, err
	}
	resp := &pb.DrainWorkerResponse{}
	for _, l := range left {
		resp.Remaining = append(resp.Remaining, &pb.RemainingLease{
			StepId: l.Token.Step.String(), Handler: l.Handler, ExpiresAt: timestamppb.New(l.Until),
		})
	}
	return resp, nil
}

// GetDependencyResults reads results of a running step's parents.
func (s *workerService) GetDependencyResults(ctx context.Context, req *pb.GetDependencyResultsRequest) (*pb.GetDependencyResultsResponse, error) {
	token, err := leaseToken(req.GetLeaseToken())
	if err != nil {
		return nil, err
	}
	found, err := s.engine.GetDependencyResults(ctx, token, req.GetStepNames(), page(req))
	if err != nil {
		return nil, err
	}
	return &pb.GetDependencyResultsResponse{
		Results: messages(found.Items, func(r *task.DependencyResult) *pb.DependencyResult {
			return &pb.DependencyResult{StepName: r.Name, Results: orObject(r.Results)}
		}),
		NextPageToken: found.NextToken,
	}, nil
}

// ListWorkers reads a page of a namespace's sessions.
func (s *workerService) ListWorkers(ctx context.Context, req *pb.ListWorkersRequest) (*pb.ListWorkersResponse, error) {
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.WorkerView], error) {
		return s.engine.ListWorkers(ctx, caller(ctx).Namespace, req.GetHandler(), r)
	}, workerMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListWorkersResponse{Workers: list, NextPageToken: next}, nil
}
