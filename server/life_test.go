package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// eventually asks again until the answer is nil, and fails with the last one.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	ctx := within(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// health is nil when the service's status is want.
func health(ctx context.Context, conn grpc.ClientConnInterface, service string, want healthpb.HealthCheckResponse_ServingStatus) error {
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err == nil && resp.GetStatus() != want {
		err = fmt.Errorf("%q is %s", service, resp.GetStatus())
	}
	return err
}

const (
	serving    = healthpb.HealthCheckResponse_SERVING
	notServing = healthpb.HealthCheckResponse_NOT_SERVING
)

func TestAStopMovesTheWorkersFirst(t *testing.T) {
	s := start(t, pgtest.New(t), func(c *server.Config) { c.ShutdownTimeout = 20 * time.Second })
	s.submit(t, inline("t", step("s")))
	w := s.worker(t, "w", 1, "s")
	got := w.step()
	watch, err := s.tasks.WatchTask(within(t), &pb.WatchTaskRequest{TaskId: got.GetTaskId()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	begun := time.Now()
	go func() { stopped <- s.stop() }()
	for f := w.frame(); f.GetDraining() == nil; {
		f = w.frame()
	}
	if err := health(within(t), s.conn, "", notServing); err != nil {
		t.Errorf("while stopping: %v", err)
	}
	// What runs can still be reported; nothing new is given.
	s.report(t, success(got.GetLeaseToken(), ""))
	stream, err := s.workers.ReadySteps(within(t), &pb.ReadyStepsRequest{WorkerId: "x", InstanceId: "1", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}}})
	if err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, err, codes.Unavailable, "DRAINING")
	for err = nil; err == nil; {
		_, err = watch.Recv()
	}
	wantReason(t, err, codes.Unavailable, "DRAINING")
	// The worker moves: the server does not wait any longer.
	_ = w.stream.CloseSend()
	w.cancel()
	if err := <-stopped; err != nil {
		t.Errorf("stopped with %v", err)
	}
	if took := time.Since(begun); took > 7*time.Second {
		t.Errorf("stopping took %v with nobody to wait for", took)
	}
}

func TestAStopIsBounded(t *testing.T) {
	s := start(t, pgtest.New(t), func(c *server.Config) { c.ShutdownTimeout = 3 * time.Second })
	w := s.worker(t, "w", 1, "s") // it does not care about frames
	begun := time.Now()
	if err := s.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
	// Whatever the frames were, the end is OK: it means "open it again elsewhere".
	for {
		if _, err := w.stream.Recv(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("the stream ended with %v", err)
			}
			break
		}
	}
}

// proxy is the way to the database, which can be cut. Postgres itself listens on a socket file.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, db *pgtest.DB) (p *proxy, url string) {
	t.Helper()
	conf, err := pgx.ParseConfig(db.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	p = &proxy{target: fmt.Sprintf("%s/.s.PGSQL.%d", conf.Host, conf.Port), conns: map[net.Conn]bool{}}
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go p.run()
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.sever(true)
	})
	return p, fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", conf.User, p.listener.Addr(), conf.Database)
}

func (p *proxy) run() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.cut
		p.mu.Unlock()
		upstream, err := net.Dial("unix", p.target)
		if refuse || err != nil {
			_ = client.Close()
			if err == nil {
				_ = upstream.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[upstream] = true, true
		p.mu.Unlock()
		for _, pair := range [][2]net.Conn{{client, upstream}, {upstream, client}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
				_ = pair[1].Close()
			}()
		}
	}
}

// sever cuts the way, or opens it again.
func (p *proxy) sever(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			_ = c.Close()
		}
		p.conns = map[net.Conn]bool{}
	}
}

func TestReadinessFollowsTheDatabase(t *testing.T) {
	db := pgtest.New(t)
	way, url := newProxy(t, db)
	s := start(t, db, func(c *server.Config) { c.DatabaseURL = url })
	w := s.worker(t, "w", 1, "s")
	if err := health(within(t), s.conn, "", serving); err != nil {
		t.Fatal(err)
	}
	way.sever(true)
	eventually(t, "cut off", func() error { return health(within(t), s.conn, "tasker.v1.WorkerService", notServing) })
	if err := health(within(t), s.conn, server.Liveness, serving); err != nil {
		t.Errorf("the process works all the same: %v", err)
	}
	_, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: inline("t", step("s"))})
	wantReason(t, err, codes.Unavailable, "DATABASE_UNAVAILABLE")
	_, err = s.tasks.ListTasks(within(t), &pb.ListTasksRequest{})
	wantReason(t, err, codes.Unavailable, "DATABASE_UNAVAILABLE")
	way.sever(false)
	eventually(t, "back again", func() error { return health(within(t), s.conn, "", serving) })
	// Nothing was restarted, and the worker's stream goes on.
	s.submit(t, inline("t", step("s")))
	s.report(t, success(w.step().GetLeaseToken(), ""))
}

func TestAServerWaitsForItsSchema(t *testing.T) {
	db := pgtest.NewEmpty(t)
	conf := server.Default()
	conf.Listen, conf.DatabaseURL, conf.ShutdownTimeout = "127.0.0.1:0", db.ConnString(), 5*time.Second
	s, line := launch(t, conf)
	var address string
	eventually(t, "listening", func() error {
		_, after, _ := strings.Cut(s.log.String(), "msg=listening address=")
		address, _, _ = strings.Cut(after, "\n")
		if address == "" {
			return errors.New("not yet")
		}
		return nil
	})
	conn := dial(t, address)
	eventually(t, "the log", func() error {
		if said := s.log.String(); !strings.Contains(said, "001_roles.sql") || !strings.Contains(said, "tasker migrate up") {
			return errors.New("the log does not name the migration: " + said)
		}
		return nil
	})
	if err := health(within(t), conn, "", notServing); err != nil {
		t.Error(err)
	}
	_, err := pb.NewTaskServiceClient(conn).ListTasks(within(t), &pb.ListTasksRequest{})
	wantReason(t, err, codes.Unavailable, "DATABASE_UNAVAILABLE")

	if state, err := server.SchemaStatus(within(t), conf, quiet); err != nil || state.Ready() || len(state.Pending) == 0 {
		t.Errorf("status before: %v, %v", state, err)
	}
	if state, err := server.Migrate(within(t), conf, quiet); err != nil || !state.Ready() {
		t.Fatalf("migrating: %v, %v", state, err)
	}
	if got, err := line(); err != nil || !strings.Contains(got, address) {
		t.Errorf("ready: %q, %v", got, err)
	}
	if err := health(within(t), conn, "", serving); err != nil {
		t.Error(err)
	}
	if _, err := pb.NewTaskServiceClient(conn).ListTasks(within(t), &pb.ListTasksRequest{}); err != nil {
		t.Error(err)
	}
}

func TestAutoMigrate(t *testing.T) {
	db := pgtest.NewEmpty(t)
	s := start(t, db, func(c *server.Config) { c.AutoMigrate = true })
	s.submit(t, inline("t", step("s")))
}

// A login that is a member of tasker_runtime and nothing else can do all that a server does.
func TestAServerActsAsTheRuntimeRole(t *testing.T) {
	db := pgtest.New(t)
	login := "app_" + db.Name
	if _, err := db.Pool.Exec(t.Context(), "create role "+login+" login in role tasker_runtime"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := pgx.Connect(ctx, db.ConnString())
		if err == nil {
			_, err = conn.Exec(ctx, "drop role "+login)
			_ = conn.Close(ctx)
		}
		if err != nil {
			t.Errorf("dropping the role: %v", err)
		}
	})
	conf, err := pgx.ParseConfig(db.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	// noinherit: what the login may do without taking the role on is nothing at all.
	if _, err := db.Pool.Exec(t.Context(), "alter role "+login+" noinherit"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Pool.Exec(t.Context(), "grant select on schema_version, schema_code to "+login); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), db.ConnString())
		if err == nil {
			_, _ = conn.Exec(context.Background(), "drop owned by "+login)
			_ = conn.Close(context.Background())
		}
	})
	s := start(t, db, func(c *server.Config) {
		c.DatabaseURL = fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", conf.Host, conf.Port, login, conf.Database)
	})
	made := s.submit(t, inline("t", step("a"), step("b", "a")))
	w := s.worker(t, "w", 1, "a", "b")
	s.report(t, success(w.step().GetLeaseToken(), ""))
	s.report(t, permanent(w.step().GetLeaseToken(), "NO"))
	eventually(t, "the end", func() error {
		if got := s.task(t, made.GetTaskId()).GetTask().GetState(); got != pb.TaskState_TASK_STATE_ERROR {
			return fmt.Errorf("the task is %v", got)
		}
		return nil
	})
	if said := s.log.String(); strings.Contains(said, "permission denied") {
		t.Errorf("the role lacks a right: %s", said)
	}
}

func TestOtherMachinesNeedTLSOrTheWord(t *testing.T) {
	conf := server.Default()
	conf.Listen, conf.DatabaseURL = "0.0.0.0:0", pgtest.New(t).ConnString()
	if err := server.Run(within(t), conf, io.Discard, quiet); err == nil || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("in plaintext on every address: %v", err)
	}
	start(t, pgtest.New(t), func(c *server.Config) { c.Listen, c.Insecure = "0.0.0.0:0", true })
}

func TestMetrics(t *testing.T) {
	s := start(t, pgtest.New(t), func(c *server.Config) { c.MetricsListen = "127.0.0.1:0" })
	s.submit(t, inline("t", step("s"), step("x")))
	s.report(t, success(s.worker(t, "w", 1, "s").step().GetLeaseToken(), ""))
	if _, err := s.steps.PauseHandler(within(t), &pb.PauseHandlerRequest{Handler: "x", Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(s.log.String(), `msg="serving metrics" address=`)
	address, _, _ := strings.Cut(after, "\n")
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	for _, want := range []string{
		`tasker_lane_ready_steps{circuit="",handler="x",namespace="default",priority="1"} 1`,
		`tasker_lane_oldest_due_age_seconds{circuit="",handler="x",namespace="default",priority="1"} `,
		`tasker_lane_waiting_steps{circuit="",handler="s",namespace="default",priority="1"} 0`,
		`tasker_pause_age_seconds{handler="x",namespace="default"} `,
		"tasker_leases 0", "tasker_streams 1", "tasker_reports_total 1", "tasker_dispatches_total 1", "tasker_tasks_submitted_total 1",
		"tasker_flushes_total ", "tasker_database_up 1", "tasker_database_xmin_age ", "tasker_panics_total 0",
		`pgxpool_max_conns{pool="hot"} 8`, `grpc_server_handled_total{grpc_code="OK",grpc_method="SubmitTask",grpc_service="tasker.v1.TaskService",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="NotFound",grpc_method="SubmitTask",grpc_service="tasker.v1.TaskService",grpc_type="unary"} 0`,
		`grpc_server_started_total{grpc_method="ReadySteps",grpc_service="tasker.v1.WorkerService",grpc_type="server_stream"} 1`,
		`grpc_server_msg_received_total{grpc_method="ReadySteps",grpc_service="tasker.v1.WorkerService",grpc_type="server_stream"} 1`,
		`grpc_server_msg_sent_total{grpc_method="SubmitTask",grpc_service="tasker.v1.TaskService",grpc_type="unary"} 1`,
		`grpc_server_handling_seconds_count{grpc_method="SubmitTask",grpc_service="tasker.v1.TaskService",grpc_type="unary"} 1`,
	} {
		if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Log(string(body))
	}
}

func TestNoPayloadTokenOrPasswordIsLogged(t *testing.T) {
	db := pgtest.New(t)
	s := start(t, db, func(c *server.Config) { c.DatabaseURL += "&password=hunter2" })
	sub := inline("t", step("s"))
	sub.Context = `{"card": "payload-1"}`
	s.submit(t, sub)
	got := s.worker(t, "w", 1, "s").step()
	s.report(t, success(got.GetLeaseToken(), `{"card": "payload-2"}`))
	_, _ = s.workers.ReportStepResult(within(t), success(got.GetLeaseToken(), `["payload-3"]`))
	_, _ = s.workers.ReportStepResult(within(t), permanent(got.GetLeaseToken(), "payload-4"))
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	said := s.log.String()
	for _, secret := range []string{"payload-", got.GetLeaseToken(), "hunter2"} {
		if strings.Contains(said, secret) {
			t.Errorf("the log holds %q:\n%s", secret, said)
		}
	}
	// What it does hold: each call, by method and code, and the reason of a refusal.
	for _, want := range []string{"service=tasker.v1.TaskService", "method=SubmitTask", "code=OK", "reason=RESULT_CONFLICT", "code=FailedPrecondition"} {
		if !strings.Contains(said, want) {
			t.Errorf("the log lacks %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "service=grpc.health") {
		t.Errorf("health checks are logged:\n%s", said)
	}
}

func TestReflectionIsAChoice(t *testing.T) {
	db := pgtest.New(t)
	for on, want := range map[bool]codes.Code{true: codes.OK, false: codes.Unimplemented} {
		s := start(t, db, func(c *server.Config) { c.Reflection = on })
		stream, err := s.conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
			"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.CloseSend()
		err = stream.RecvMsg(&healthpb.HealthCheckResponse{})
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if got := status.Code(err); got != want {
			t.Errorf("reflection %v: %v", on, err)
		}
	}
}

func TestLimitsOfAConnection(t *testing.T) {
	s := start(t, pgtest.New(t))
	// A request that the transport itself does not take, and one just below that.
	huge := strings.Repeat("x", 9<<20)
	_, err := s.tasks.CancelTask(within(t), &pb.CancelTaskRequest{TaskId: "1", Reason: huge})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("9 MiB: %v", err)
	}
	_, err = s.tasks.CancelTask(within(t), &pb.CancelTaskRequest{TaskId: "1", Reason: huge[:8<<20-100]})
	wantReason(t, err, codes.InvalidArgument, "VALIDATION")
	// 256 streams on one connection, and not one more.
	conn := dial(t, s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	for i := range 256 {
		stream, err := pb.NewWorkerServiceClient(conn).ReadySteps(ctx, &pb.ReadyStepsRequest{
			WorkerId: fmt.Sprint("w", i), InstanceId: "1", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	short, done := context.WithTimeout(ctx, 300*time.Millisecond)
	defer done()
	if _, err := pb.NewTaskServiceClient(conn).ListTasks(short, &pb.ListTasksRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("call 257 of a connection: %v", err)
	}
	if _, err := s.tasks.ListTasks(within(t), &pb.ListTasksRequest{}); err != nil {
		t.Errorf("a call of another connection: %v", err)
	}
}
