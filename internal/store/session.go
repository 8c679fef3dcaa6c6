package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Session is a worker process as it introduces itself.
type Session struct {
	WorkerID    string
	InstanceID  string
	MaxInFlight int
	Handlers    []string
	Labels      []string
	BuildID     string
	ClientInfo  string
}

// SessionLiveFor is how long a session that nobody closed keeps its worker_id, counted from when it was opened or its server last
// said that it is alive. It bounds how long a worker waits to come back under a new instance_id after its server was killed.
const SessionLiveFor = 15 * time.Second

// OpenSession makes the server replicaID the one that grants to a session. WORKER_ID_IN_USE when another instance of the
// worker is alive.
func (s *Store) OpenSession(ctx context.Context, namespaceID int32, replicaID [16]byte, w Session) (sessionID, epoch int32, at time.Time, err error) {
	err = s.inPipeline(ctx, func(p *pipeline) error {
		sessionID = 0
		b := &pgx.Batch{}
		b.Queue(sqlText("lock_worker"), namespaceID, w.WorkerID)
		each(b, "open_session", func(rows pgx.Rows) error { return rows.Scan(&sessionID, &epoch, &at) },
			namespaceID, w.WorkerID, w.InstanceID, replicaID, w.MaxInFlight, w.Handlers, w.Labels, w.BuildID, w.ClientInfo, SessionLiveFor, s.at())
		return p.commit(ctx, b, false)
	})
	if err == nil && sessionID == 0 {
		return 0, 0, at, task.Refuse(task.WorkerIDInUse, "another live instance has this worker_id").With("worker_id", w.WorkerID)
	}
	return sessionID, epoch, at, err
}

// SessionLease is a lease that a session holds.
type SessionLease struct {
	Token     task.Token
	LaneID    int32
	Confirmed bool
	Until     time.Time
	Handler   string // for the caller to fill in from the lane
}

// SessionLeases reads what a session holds.
func (s *Store) SessionLeases(ctx context.Context, namespaceID, sessionID int32) ([]SessionLease, error) {
	rows, err := s.Hot.Query(ctx, sqlText("session_leases"), sessionID)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l SessionLease, err error) {
		var (
			id int64
			no int
		)
		l.Token.NamespaceID, l.Token.SessionID = namespaceID, sessionID
		err = row.Scan(&id, &no, &l.Token.Nonce, &l.Token.Dispatch, &l.LaneID, &l.Confirmed, &l.Until, &l.Token.CircuitID)
		l.Token.Step = task.ID(id).Step(no)
		return l, err
	})
}

// Kept is what became of a session.
type Kept struct {
	SessionID  int32
	Kept       bool // this server has it still
	Drained    bool // DrainWorker was called: no more grants
	Superseded bool // a later instance has its worker_id
}

// LeaseTokens reads the tokens of the leases that sessions hold.
func (s *Store) LeaseTokens(ctx context.Context, sessionIDs []int32) (map[[16]byte]bool, error) {
	rows, err := s.Cold.Query(ctx, sqlText("lease_tokens"), sessionIDs)
	if err != nil {
		return nil, err
	}
	tokens := map[[16]byte]bool{}
	var token [16]byte
	_, err = pgx.ForEachRow(rows, []any{&token}, func() error {
		tokens[token] = true
		return nil
	})
	return tokens, err
}

// OpenedSession is a session that is open, and its epoch.
type OpenedSession struct{ NamespaceID, SessionID, Epoch int32 }

// SessionsOf reads which sessions a server has by the database, of those that were opened before SessionLiveFor.
func (s *Store) SessionsOf(ctx context.Context, replicaID [16]byte) ([]OpenedSession, error) {
	rows, err := s.Cold.Query(ctx, sqlText("open_sessions_of"), replicaID, SessionLiveFor, s.at())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[OpenedSession])
}

// CloseSession ends a session, unless another server has it by now.
func (s *Store) CloseSession(ctx context.Context, sessionID, epoch int32) error {
	_, err := s.Hot.Exec(ctx, sqlText("close_session"), sessionID, epoch, s.at())
	return err
}

// DrainSession stops grants to a worker's session: none is made after it returns. NOT_FOUND semantics are the caller's:
// ok is false for a session that never was.
func (s *Store) DrainSession(ctx context.Context, namespaceID int32, workerID, instanceID string) (sessionID int32, ok bool, err error) {
	var epoch int32
	err = s.Hot.QueryRow(ctx, sqlText("drain_session"), namespaceID, workerID, instanceID, s.at()).Scan(&sessionID, &epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return sessionID, err == nil, err
}
