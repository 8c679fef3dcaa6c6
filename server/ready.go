package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// Liveness is the name under which the health service says that the process works, whatever its database does. The empty name
// and those of Tasker's services say whether calls are likely to succeed.
const Liveness = "liveness"

// services follow readiness.
var services = []string{
	"", pb.TaskService_ServiceDesc.ServiceName, pb.WorkerService_ServiceDesc.ServiceName, pb.StepService_ServiceDesc.ServiceName,
	pb.TemplateService_ServiceDesc.ServiceName, pb.CircuitService_ServiceDesc.ServiceName,
}

const (
	// lookEvery is how often readiness is judged.
	lookEvery = time.Second
	// pulseFresh is how old an answer to the engine's own looks may be for the database to need no other.
	pulseFresh = 2 * time.Second
	// schemaEvery is how many looks lie between two that go through the schema as well.
	schemaEvery = 300
)

// readiness follows the database and tells the health service.
type readiness struct {
	db     *database
	log    *slog.Logger
	health *health.Server
	// pulse is when the database last answered somebody else as one that can be written to.
	pulse func() time.Time
	// learn takes what the database's clock showed to a question that was asked at began.
	learn func(began, database time.Time)

	up atomic.Bool // the database has been ready once
	// first is closed then.
	first chan struct{}
}

func newReadiness(db *database, log *slog.Logger, pulse func() time.Time, learn func(began, database time.Time)) *readiness {
	r := &readiness{db: db, log: log, health: health.NewServer(), pulse: pulse, learn: learn, first: make(chan struct{})}
	r.tell(healthpb.HealthCheckResponse_NOT_SERVING)
	r.health.SetServingStatus(Liveness, healthpb.HealthCheckResponse_SERVING)
	return r
}

func (r *readiness) tell(status healthpb.HealthCheckResponse_ServingStatus) {
	for _, s := range services {
		r.health.SetServingStatus(s, status)
	}
}

// follow looks at the database until ctx ends.
func (r *readiness) follow(ctx context.Context) {
	ready, looks := false, 0
	var said string // the last trouble, so that one that lasts is told once
	for {
		err := r.look(ctx, !ready || looks%schemaEvery == 0)
		looks++
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && !ready:
			r.log.InfoContext(ctx, "database ready")
			r.tell(healthpb.HealthCheckResponse_SERVING)
			if !r.up.Swap(true) {
				close(r.first)
			}
			said = ""
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				r.log.WarnContext(ctx, "not ready", "error", text)
			}
			if ready {
				r.tell(healthpb.HealthCheckResponse_NOT_SERVING)
				r.db.reset()
			}
		}
		ready = err == nil
		if !sleep(ctx, lookEvery) {
			return
		}
	}
}

// look finds out whether the database answers, what its clock says and, if thorough, whether it is fit for use. As long as it
// answers the engine it is asked nothing.
func (r *readiness) look(ctx context.Context, thorough bool) error {
	if thorough {
		// Migrations may take long; their own connection shows when it is gone.
		if err := r.db.prepare(ctx); err != nil {
			return err
		}
	}
	if !thorough && time.Since(r.pulse()) < pulseFresh {
		return nil
	}
	began := time.Now()
	at, err := r.db.probe(ctx)
	if err == nil {
		r.learn(began, at)
	}
	return err
}

// sleep waits, and tells whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// gate refuses calls before the database was ready for the first time: they would meet tables that are not there. Later
// trouble is every call's own to find.
func (r *readiness) gate() error {
	if r.up.Load() {
		return nil
	}
	return task.Refuse(task.DatabaseUnavailable, "the database is not ready yet").After(lookEvery)
}

// stop takes the server out for good.
func (r *readiness) stop() { r.health.Shutdown() }
