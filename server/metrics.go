package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/IBM/pgxpoolprometheus"
	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// metrics is what a server shows of itself: its calls, its engine, its pools, and the lanes of its database.
type metrics struct {
	registry *prometheus.Registry
	calls    *grpcprom.ServerMetrics
	panics   prometheus.Counter
}

func newMetrics(e *engine.Engine, st *store.Store) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(
			grpcprom.WithHistogramBuckets([]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}))),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "tasker_panics_total", Help: "Panics caught in calls: each is a defect."}),
	}
	m.registry.MustRegister(m.calls, m.panics, engineCollector{e}, &databaseCollector{store: st},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		pgxpoolprometheus.NewCollector(st.Hot, map[string]string{"pool": "hot"}),
		pgxpoolprometheus.NewCollector(st.Cold, map[string]string{"pool": "cold"}))
	return m
}

// serve answers GET /metrics until ctx ends.
func (m *metrics) serve(ctx context.Context, address string, log *slog.Logger) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 30 * time.Second}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	log.InfoContext(ctx, "serving metrics", "address", listener.Addr().String())
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// ---------------------------------------------------------------- engine

type engineCollector struct{ engine *engine.Engine }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tasker_"+name, help, labels, nil)
}

var (
	submittedDesc = desc("tasks_submitted_total", "Tasks that this server stored.")
	reportedDesc  = desc("reports_total", "Results that this server took.")
	grantedDesc   = desc("dispatches_total", "Leases that this server granted.")
	flushesDesc   = desc("flushes_total", "Transactions in which this server stored tasks, recorded results and granted leases. Results and leases over transactions is the batch size.")
	flushTimeDesc = desc("flush_seconds_total", "Time spent in these transactions.")
	expiredDesc   = desc("expired_leases_total", "Leases that this server ended because their time was up.")
	vacuumsDesc   = desc("live_table_vacuums_total", "Rounds in which this server cleaned the live tables. None under load: its login does not own them.")
	waitingDesc   = desc("waiting_calls", "Submits and reports that wait for a transaction on this server.")
	streamsDesc   = desc("streams", "Open ReadySteps streams of this server.")
	sessionsDesc  = desc("sessions", "Worker sessions that this server grants to.")
	heldDesc      = desc("session_leases", "Leases of these sessions, as this server counts them.")
	listeningDesc = desc("listening", "1 while other servers' wakes are heard.")
)

var circuitStates = []task.CircuitState{task.CircuitClosed, task.CircuitOpen, task.CircuitHalfOpen, task.CircuitRecovering, task.CircuitHeld}

// Describe tells no descriptions: the metrics are checked as they are collected.
func (engineCollector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the engine's counters.
func (c engineCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.engine.Stats()
	counter := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	counter(submittedDesc, float64(s.Submitted))
	counter(reportedDesc, float64(s.Reported))
	counter(grantedDesc, float64(s.Granted))
	counter(flushesDesc, float64(s.Flushes))
	counter(flushTimeDesc, s.FlushTime.Seconds())
	counter(expiredDesc, float64(s.Expired))
	counter(vacuumsDesc, float64(s.Vacuums))
	gauge(waitingDesc, float64(s.Waiting))
	gauge(streamsDesc, float64(s.Streams))
	gauge(sessionsDesc, float64(s.Sessions))
	gauge(heldDesc, float64(s.Leases))
	listening := 0.0
	if s.Listening {
		listening = 1
	}
	gauge(listeningDesc, listening)
}

// ---------------------------------------------------------------- database

// databaseCollector shows the lanes, which all servers share: every one of them tells the same. A reading is kept for a while,
// so that scrapes from many places cost one.
type databaseCollector struct {
	store *store.Store

	mu    sync.Mutex
	gauge store.Gauge
	err   error
	at    time.Time
}

const (
	gaugeFor     = 5 * time.Second
	gaugeTimeout = 10 * time.Second
)

var (
	laneReadyDesc       = desc("lane_ready_steps", "Steps that may run now, due retries included; counted up to 10,000 a lane.", "namespace", "handler", "circuit", "priority")
	laneWaitingDesc     = desc("lane_waiting_steps", "Steps that back off or are deferred; counted up to 10,000 a lane.", "namespace", "handler", "circuit", "priority")
	laneOldestDesc      = desc("lane_oldest_due_age_seconds", "How long the oldest step that may run has been waiting.", "namespace", "handler", "circuit", "priority")
	circuitStateDesc    = desc("circuit_state", "1 for the state that a shared circuit is in, 0 for the others.", "namespace", "circuit", "state")
	circuitInFlightDesc = desc("circuit_in_flight", "Live leases of a shared circuit's steps, of all servers.", "namespace", "circuit")
	circuitWaitingDesc  = desc("circuit_waiting_steps", "Steps of a shared circuit that could run now but for it, or for want of workers; counted up to 10,000.", "namespace", "circuit")
	pauseAgeDesc        = desc("pause_age_seconds", "How long a pause has been in force, of a handler or, where that is empty, of the whole namespace. Absent: nothing is paused.", "namespace", "handler")
	leasesDesc          = desc("leases", "Live leases of all servers.")
	xminDesc            = desc("database_xmin_age", "Age, in transactions, of the oldest snapshot that keeps dead rows from being removed.")
	upDesc              = desc("database_up", "1 when the database answered this reading.")
)

// Describe tells no descriptions: the metrics are checked as they are collected.
func (*databaseCollector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the database, or repeats what it read a moment ago.
func (c *databaseCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) > gaugeFor {
		ctx, cancel := context.WithTimeout(context.Background(), gaugeTimeout)
		defer cancel()
		c.gauge, c.err = c.store.Gauge(ctx)
		c.at = time.Now()
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if c.err != nil {
		gauge(upDesc, 0)
		return
	}
	gauge(upDesc, 1)
	gauge(leasesDesc, float64(c.gauge.Leases))
	gauge(xminDesc, float64(c.gauge.XminAge))
	for _, l := range c.gauge.Lanes {
		labels := []string{l.Namespace, l.Handler, l.Circuit, fmt.Sprint(l.Priority)}
		gauge(laneReadyDesc, float64(l.Ready), labels...)
		gauge(laneWaitingDesc, float64(l.Waiting), labels...)
		gauge(laneOldestDesc, l.OldestDueAge.Seconds(), labels...)
	}
	for _, x := range c.gauge.Circuits {
		for _, state := range circuitStates {
			is := 0.0
			if x.State == state {
				is = 1
			}
			gauge(circuitStateDesc, is, x.Namespace, x.Circuit, string(state))
		}
		gauge(circuitInFlightDesc, float64(x.InFlight), x.Namespace, x.Circuit)
		gauge(circuitWaitingDesc, float64(x.Waiting), x.Namespace, x.Circuit)
	}
	for _, p := range c.gauge.Pauses {
		gauge(pauseAgeDesc, p.Age.Seconds(), p.Namespace, p.Handler)
	}
}
