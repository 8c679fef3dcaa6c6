package server_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
)

// joined runs a task of n parents and one step behind them, whose frame it gives. Each parent reports results of size bytes.
func joined(t *testing.T, s *running, n, size int) *pb.ReadyStep {
	t.Helper()
	last := step("last")
	sub := inline("join", last)
	for i := range n {
		def := step(fmt.Sprintf("p%03d", i))
		def.Handler = proto.String("parent")
		last.DependsOn = append(last.DependsOn, def.GetName())
		sub.GetInline().Steps = append(sub.GetInline().Steps, def)
	}
	s.submit(t, sub)
	w := s.worker(t, "w", 10, "parent", "last")
	for range n {
		got := w.step()
		s.report(t, success(got.GetLeaseToken(), fmt.Sprintf(`{"from":%q,"pad":%q}`, got.GetStepName(), strings.Repeat("x", size))))
	}
	return w.step()
}

func TestResultsOfManyParentsComeInTheFrame(t *testing.T) {
	s := start(t, pgtest.New(t))
	got := joined(t, s, 40, 10)
	if len(got.GetDependencyResults()) != 40 || len(got.GetOmittedDependencies()) != 0 {
		t.Fatalf("%d results, %d omitted", len(got.GetDependencyResults()), len(got.GetOmittedDependencies()))
	}
	if r := got.GetDependencyResults()["p017"]; !strings.Contains(r, `"from":"p017"`) {
		t.Errorf("p017: %.80s", r)
	}
}

func TestResultsThatDoNotFitAreReadInPages(t *testing.T) {
	s := start(t, pgtest.New(t))
	got := joined(t, s, 12, 400<<10)
	inFrame, omitted := len(got.GetDependencyResults()), got.GetOmittedDependencies()
	if inFrame == 0 || len(omitted) == 0 || inFrame+len(omitted) != 12 {
		t.Fatalf("%d results, %d omitted", inFrame, len(omitted))
	}
	if size := proto.Size(got); size > 3<<20+512<<10 {
		t.Errorf("a frame of %d bytes", size)
	}
	req := &pb.GetDependencyResultsRequest{LeaseToken: got.GetLeaseToken(), StepNames: omitted}
	read := map[string]string{}
	for first := true; first || req.GetPageToken() != ""; first = false {
		page, err := s.workers.GetDependencyResults(within(t), req)
		if err != nil || len(page.GetResults()) == 0 {
			t.Fatalf("reading: %v, %v", page, err)
		}
		for _, r := range page.GetResults() {
			read[r.GetStepName()] = r.GetResults()
		}
		req.PageToken = page.GetNextPageToken()
	}
	for _, name := range omitted {
		if !strings.Contains(read[name], fmt.Sprintf(`"from":%q`, name)) {
			t.Errorf("%s: %.80s", name, read[name])
		}
	}
	if len(read) != len(omitted) {
		t.Errorf("%d read, %d omitted", len(read), len(omitted))
	}
}
