package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/taskerhq/tasker/internal/rpc"
)

// calls are the metrics of calls, under the names that are usual for gRPC servers. Each method's are looked up by their labels
// once, not at every call.
type calls struct {
	started, handled, received, sent *prometheus.CounterVec
	seconds                          *prometheus.HistogramVec
	methods                          map[string]*methodCounts // by full name; written before the first call
}

// methodCounts are those of one method.
type methodCounts struct {
	started, received, sent prometheus.Counter
	handled                 []prometheus.Counter // by code
	seconds                 prometheus.Observer
}

func newCalls() *calls {
	method := []string{"grpc_type", "grpc_service", "grpc_method"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "grpc_server_" + name, Help: help}, labels)
	}
	return &calls{
		started:  counter("started_total", "Calls that began.", method...),
		handled:  counter("handled_total", "Calls that ended, by their status code.", append(method[:3:3], "grpc_code")...),
		received: counter("msg_received_total", "Messages that calls brought.", method...),
		sent:     counter("msg_sent_total", "Messages that calls were answered with.", method...),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "How long calls took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, method),
		methods: map[string]*methodCounts{},
	}
}

// learn prepares for the methods of a server that has them all and serves none yet.
func (c *calls) learn(server *grpc.Server) {
	for service, info := range server.GetServiceInfo() {
		for _, m := range info.Methods {
			labels := []string{callType(m), service, m.Name}
			counts := &methodCounts{
				started: c.started.WithLabelValues(labels...), received: c.received.WithLabelValues(labels...),
				sent: c.sent.WithLabelValues(labels...), seconds: c.seconds.WithLabelValues(labels...),
			}
			for code := codes.OK; code <= codes.Unauthenticated; code++ {
				counts.handled = append(counts.handled, c.handled.WithLabelValues(append(labels[:3:3], code.String())...))
			}
			c.methods["/"+service+"/"+m.Name] = counts
		}
	}
}

func callType(m grpc.MethodInfo) string {
	switch {
	case m.IsClientStream && m.IsServerStream:
		return "bidi_stream"
	case m.IsClientStream:
		return "client_stream"
	case m.IsServerStream:
		return "server_stream"
	}
	return "unary"
}

// of gives a method's counts. gRPC calls no method that the server did not have when it was learned.
func (c *calls) of(method string) rpc.Counts { return c.methods[method] }

// Began counts a call.
func (m *methodCounts) Began() { m.started.Inc() }

// Received counts a message of a call.
func (m *methodCounts) Received() { m.received.Inc() }

// Sent counts a message that a call is answered with.
func (m *methodCounts) Sent() { m.sent.Inc() }

// Ended counts the end of a call.
func (m *methodCounts) Ended(code codes.Code, took time.Duration) {
	// A handler may make up a code; what it means is unknown.
	if int(code) >= len(m.handled) {
		code = codes.Unknown
	}
	m.handled[code].Inc()
	m.seconds.Observe(took.Seconds())
}

// Describe tells the descriptions of all metrics.
func (c *calls) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range []prometheus.Collector{c.started, c.handled, c.received, c.sent, c.seconds} {
		m.Describe(ch)
	}
}

// Collect tells all metrics.
func (c *calls) Collect(ch chan<- prometheus.Metric) {
	for _, m := range []prometheus.Collector{c.started, c.handled, c.received, c.sent, c.seconds} {
		m.Collect(ch)
	}
}
