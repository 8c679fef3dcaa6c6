package worker

import taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"

// FrameReceived is one frame of a stream, as it came.
type FrameReceived struct {
	// Stream numbers the worker's streams from 1.
	Stream int
	Frame  *taskerv1.ReadyStepsResponse
}

// ReportSent is a report that is about to be sent for the first time. From here on the server may have recorded it.
type ReportSent struct {
	Report *taskerv1.ReportStepResultRequest
}

// ReportAnswered is a report that the server has answered for good: recorded (code 0), or refused and dropped. An answer
// that only asks for the report to be sent again is none.
type ReportAnswered struct {
	Report *taskerv1.ReportStepResultRequest
	Answer *taskerv1.BatchReportStepResultsEntry
}

// HeartbeatAnswered is how the server says that one lease stands.
type HeartbeatAnswered struct {
	Answer *taskerv1.HeartbeatStepsEntry
}

// ReleaseAnswered is what became of a step that was handed back.
type ReleaseAnswered struct {
	Answer *taskerv1.ReleaseStepsEntry
}
