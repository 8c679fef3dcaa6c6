package conformance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// row is a promise, and the tests that prove it. A proof is a test of this package ("TestX"), of another ("internal/store TestX"),
// or a file that a test or the checks before a release run ("test/mutants/x.patch").
type row struct {
	promise string
	proofs  []string
}

// rows are all promises, by topic.
var rows = map[string][]row{
	"steps": {
		{"a step passes through pending, in_progress, error, complete, cancelled, resolved_manually, and each is spelled alike in contract and SQL", []string{"TestStep_PassesThroughTheStatesOfItsLife", "internal/rpc TestEnumsMirrorTheWordsOfTheDatabase", "internal/contract TestEnumsSayTheWordsOfTheirSQLTypes", "internal/contract TestEnumsSayTheWordsOfTheirColumns"}},
		{"complete, cancelled and resolved_manually are never left", []string{"TestStep_EndedStatesAreNeverLeft"}},
		{"a step that backs off stays in error", []string{"TestStep_PassesThroughTheStatesOfItsLife", "TestReadiness_BacksOffByTheSeedsTable"}},
		{"a step's live row is its mutex: whatever two verbs meet, one follows the other", []string{"internal/store TestRaceOfCancelAndClaim", "internal/store TestRaceOfCancelAndComplete", "internal/store TestRaceOfALateReportAndAClaim", "internal/store TestRaceOfRetryAndResolve", "internal/store TestRaceOfTakeOverAndClaim", "internal/store TestCancelRacesClaimsAndReports", "test/mutants/cancel_looks_once.patch"}},
		{"rows are locked before they are moved, and as many are moved as were locked, or none", []string{"internal/store TestRaceOfHeartbeatAndReport", "internal/store TestRaceOfHeartbeatAndExpiry", "bench/floor TestCompleteDuringHeartbeat", "test/mutants/lock_and_delete.patch"}},
		{"verbs that cross one another meet no deadlock", []string{"internal/store TestCrossingBatchesOfEveryVerbMeetNoDeadlock", "test/mutants/unordered_arrivals.patch"}},
		{"every verb agrees with a model of a few lines, and readiness with the next claim, after every move", []string{"internal/store TestReadinessEqualsWhatAClaimGrantsNext", "internal/store TestTheModelImportsNothingOfTheProject"}},
	},
	"readiness": {
		{"ready_for_execution is what the stream grants next", []string{"TestReadiness_EqualsWhatTheStreamGrantsNext", "internal/store TestReadinessEqualsWhatAClaimGrantsNext"}},
		{"dependencies are satisfied when every parent is complete or resolved", []string{"TestTask_IsCompleteWhenEveryStepIsCompleteOrResolved", "internal/store TestFanInWakesTheJoinOnceHoweverItsParentsFinish", "test/mutants/arrival_from_the_input.patch", "test/mutants/first_arrival.patch", "test/mutants/lost_wake_up.patch"}},
		{"delays follow the seed's table, 2 4 8 16 30 30 seconds, from the time of the failure", []string{"TestReadiness_BacksOffByTheSeedsTable", "internal/store TestNextRetryFollowsTheSeedsTableAndIsEligibleOnlyThen", "internal/history TestDefaultDelays"}},
		{"every step has its own backoff", []string{"TestReadiness_EachStepHasItsOwnPolicy"}},
		{"jitter is added on top, drawn once, stored, and never added to a directed delay", []string{"TestReadiness_JitterIsAddedOnTopDrawnOnceAndNeverToADirectedDelay", "internal/store TestJitterIsAddedOnTopAndStored", "test/mutants/jitter_on_a_hint.patch"}},
		{"an explicit delay replaces the backoff, also when it is shorter", []string{"TestReadiness_ExplicitReplacesExponentialAlsoWhenShorter", "test/mutants/retry_after_ignored.patch"}},
		{"an explicit delay of 0 means now", []string{"TestReadiness_ZeroMeansNow"}},
		{"every failure overwrites the explicit delay, its absence too, and a success clears it", []string{"TestReadiness_EveryFailureOverwritesTheRequestAndSuccessClearsIt", "internal/store TestExplicitBackoffReplacesAndIsOverwrittenAndCleared"}},
		{"the delay counts from the report, so that a long run does not eat it", []string{"TestReadiness_AnchorIsTheReportSoThatALongRunDoesNotEatItsDelay", "internal/store TestAnchorIsTheReportsOwnInstant"}},
		{"a permanent failure is never retried, however many attempts are left, until RetryStep", []string{"TestReadiness_PermanentFailureIsNeverRetriedUntilRetryStep", "test/mutants/permanent_overwritten.patch"}},
		{"retryable false: the first run happens, and any failure of it is final", []string{"TestReadiness_RetryableFalseMeansOneRunAndAnyFailureIsFinal"}},
		{"an exhausted step is not eligible and has no next_retry_at", []string{"TestReadiness_ExhaustedIsNotEligibleAndHasNoNextRetry", "internal/store TestPermanentNotRetryableAndExhaustedAreNeverEligible"}},
		{"error codes listed as final are final", []string{"TestReadiness_ListedErrorCodesAreFinal"}},
		{"why a step is parked is said alike everywhere", []string{"TestReadiness_WhyItIsParkedIsTheSameInTheAnswerAndInTheStep"}},
		{"no number of failures breaks the readiness query, as the seed's own expression does", []string{"TestReadiness_SurvivesAnyNumberOfFailuresAsTheSeedsSnippetDoesNot", "internal/store TestBackoffDelayIsClampedAtEveryFailureCountAndTimeZone"}},
		{"the session's time zone changes nothing", []string{"internal/store TestReadinessIsTheSameInEveryTimeZone", "TestSurface_TheSeedsQuestionsTakeTheIdAsTheContractPrintsIt"}},
		{"one function computes every delay", []string{"internal/store TestBackoffDelayIsClampedAtEveryFailureCountAndTimeZone", "internal/history TestViolations"}},
	},
	"clamps": {
		{"retry_after is clamped to max_retry_after, and the clamp is reported back", []string{"TestClamp_RetryAfterIsClampedAndReportedBack"}},
		{"typed hints out of range are refused and the lease stays", []string{"TestClamp_TypedHintsOutOfRangeAreInvalidAndTheLeaseStays", "internal/rpc TestHints"}},
		{"a bad Retry-After header never fails a report, and a date is read as a date", []string{"TestClamp_ABadHeaderNeverFailsAReport", "server TestTheRetryAfterHeaderIsReadByTheServer", "internal/task TestParseRetryAfter", "internal/task TestParseRetryAfterAcrossTheCentury", "internal/task FuzzParseRetryAfter"}},
		{"retry_at is stored as its distance: last_attempted_at plus backoff_request_seconds is next_retry_at", []string{"TestClamp_RetryAtIsStoredAsItsDistanceFromTheReport"}},
	},
	"attempts": {
		{"success, failure and run timeout count one attempt each", []string{"TestAttempts_CountSuccessesFailuresAndTimeouts", "internal/engine TestARunTimeoutRevokesTheLeaseAndCountsAsARetryableFailure", "test/mutants/attempts_miscounted.patch"}},
		{"a run timeout counts from the confirmation, revokes the lease, and is retried as TIMED_OUT", []string{"TestAttempts_CountSuccessesFailuresAndTimeouts", "internal/rpc TestTheRunTimeoutIsReadFromHandlerConfig"}},
		{"skipped runs do not count 100 times in a row, and the delay grows", []string{"TestAttempts_SkippedRunsAreNotCountedAHundredTimesInARowAndGrowTheDelay"}},
		{"attempts are listed with who, when, outcome, error, delay and why", []string{"TestAttempts_ListShowsWhoWhenOutcomeErrorDelayAndWhy", "internal/store TestAttemptsSayWhoWhenOutcomeErrorDelayAndWhy"}},
		{"error texts beyond 4 KiB are cut with a mark and never refused", []string{"TestFailures_TextsAreCutWithAMarkAndNeverRefused", "internal/rpc TestTextsOfAFailureAreCutAndMended"}},
	},
	"leases": {
		{"a killed worker's step runs elsewhere within the lease and a second, at no attempt", []string{"TestLease_OfAKilledWorkerEndsWithinItsLengthAndASecond", "cmd/tasker TestKilledWorkerTakesItsCommandsAlongAndItsStepsRunElsewhere"}},
		{"a step that loses max_lost_leases is parked as LEASE_EXPIRED, not eligible", []string{"TestLease_LostTooOftenPoisonsTheStepAndALateReportStillCounts", "test/mutants/poison_forgiven.patch"}},
		{"an unconfirmed dispatch is free five times in a row, then lost", []string{"TestLease_UnconfirmedDispatchesAreFreeFiveTimesInARowThenLost"}},
		{"a release is free a hundred times in a row; now or after a delay; token by token", []string{"TestLease_ReleaseIsFreeAHundredTimesInARow", "TestLease_ReleasedWithADelayComesBackNotBeforeIt", "internal/engine TestReleasedStepsComeBackAtNoCostAndNotBeforeTheirDelay"}},
		{"a lease's length follows the step, the run timeout and whether the worker beats", []string{"TestLease_LengthFollowsTheStepTheTimeoutAndTheWorker", "cmd/tasker TestLongRunsKeepTheirLease", "test/docs TestWorkerOfThePage"}},
		{"a heartbeat extends the lease, stores a checkpoint, and tells of a revocation", []string{"TestLease_HeartbeatExtendsItAndStoresACheckpointForTheNextRun", "TestTask_CancelEndsWhatWaitsAndRevokesWhatRunsAndLateResultsMoveNothing"}},
		{"delivery takes at most 5 seconds, always, in stream and poll", []string{"TestDelivery_MayTakeFiveSecondsUnlessTheWorkerSaysOtherwise", "internal/engine TestAnUnconfirmedDispatchGoesBackAfterItsDeliveryTimeoutAtNoCost"}},
		{"a dispatch counts nothing before it is confirmed", []string{"server TestDeliveryIsNotCountedBeforeItIsConfirmed", "TestTask_IsPendingUntilItsFirstConfirmedDispatchAndNeverAgain"}},
		{"what was claimed and could not be sent goes back at once", []string{"internal/engine TestAWorkerThatSaysItHoldsNothingGivesItsUnconfirmedStepsBackAtOnce", "TestStream_TellsAReconnectingWorkerWhichLeasesItLost"}},
		{"a deadline parks what waits and revokes what runs", []string{"TestDeadline_ParksWhatWaitsAndRevokesWhatRuns", "internal/store TestDeadlineParksWhatWaits"}},
		{"max_elapsed counts from a step's first dispatch", []string{"TestDeadline_OfAStepIsItsMaxElapsedFromTheFirstDispatch", "internal/store TestAReleasedStepIsGivenUpWhenMaxElapsedHasPassed"}},
	},
	"fence": {
		{"a token is new for every dispatch, holds 128 random bits, and is all a report needs", []string{"TestFence_TokensAreNewForEveryDispatchAndNeverDerivable", "server TestFenceIsTheTokenAndNothingElse", "internal/task TestTokenComesBack", "internal/task FuzzParseToken", "test/mutants/no_token_check.patch"}},
		{"an invented token leaves no trace", []string{"TestFence_InventedTokensLeaveNoTrace"}},
		{"a late report counts while nobody else was granted the step, decided by the token and not by the clock", []string{"TestLease_LateReportCountsWhileNobodyElseWasGrantedTheStep", "TestLease_LostTooOftenPoisonsTheStepAndALateReportStillCounts", "internal/engine TestALateReportIsAcceptedWhileNobodyElseWasGrantedTheStep", "internal/store TestALateFailureOfALostLeaseIsAccepted", "internal/store TestALateFailureOfAPoisonedStepIsAccepted"}},
		{"one whose step was granted again is LEASE_LOST, and kept as evidence", []string{"TestLease_OfAKilledWorkerEndsWithinItsLengthAndASecond", "internal/store TestAttemptsShowALateReportedLeaseOnce"}},
		{"a reset begins a new epoch in which old tokens are worth nothing", []string{"TestLease_ResetBeginsANewEpochAndOldTokensAreWorthNothing"}},
		{"what a cancelled or timed out run reports later is LEASE_LOST", []string{"TestTask_CancelEndsWhatWaitsAndRevokesWhatRunsAndLateResultsMoveNothing", "TestAttempts_CountSuccessesFailuresAndTimeouts", "internal/store TestALateResultNeverMovesACancelledTask"}},
	},
	"tasks": {
		{"a task is pending until its first confirmed dispatch and never again", []string{"TestTask_IsPendingUntilItsFirstConfirmedDispatchAndNeverAgain"}},
		{"not_before defers a task, which waits for nothing else", []string{"TestTask_IsPendingWhileItIsDeferredAndRunsThen"}},
		{"a task is in error only when nothing else of it can run", []string{"TestTask_IsInErrorOnlyWhenNothingElseCanRun", "internal/store TestIndependentBranchesDrainBeforeATaskIsInError"}},
		{"nothing downstream of a failure is marked; blocked_by names the failure", []string{"TestTask_IsInErrorOnlyWhenNothingElseCanRun", "internal/store TestBlockedByNamesTheFailedAncestorHoweverFar"}},
		{"a task is complete when every step is complete or resolved", []string{"TestTask_IsCompleteWhenEveryStepIsCompleteOrResolved", "internal/store TestResolvingTheLastStepCompletesATaskThatEndedInError"}},
		{"a cancel ends what waits, revokes what runs, and late results move nothing", []string{"TestTask_CancelEndsWhatWaitsAndRevokesWhatRunsAndLateResultsMoveNothing", "internal/store TestCancelTaskEndsEveryStepAndRevokesWhatRuns"}},
		{"an operator's act re-opens the task in its own transaction", []string{"TestTask_OperatorsReopenItInTheSameTransaction"}},
		{"the buckets are disjoint and sum to total_steps, the status is the first that holds, and no failed task waits healthily for ever", []string{"TestTask_BucketsAlwaysSumToTotalAndTheStatusFollows", "internal/store TestExecutionContextBucketsAndStatuses"}},
		{"the end in error is recorded after the commit of the last failure, and a crash between is repaired", []string{"TestTask_AnEndThatACrashKeptFromTheRecordIsRecordedSoon", "internal/store TestTwoLastFailuresThatOverlapEndTheirTask", "internal/store TestRaceOfTwoLastFailures", "test/mutants/settle_inside.patch", "test/mutants/success_settles_nothing.patch", "test/mutants/end_taken_back_too_early.patch"}},
	},
	"operators": {
		{"RetryStep, ResolveStep and CompleteStep act on steps in error, and say why not on any other", []string{"TestOperators_EveryVerbInEveryState", "server TestOperatorVerbs"}},
		{"RetryStep makes a step new and due now, under a new epoch", []string{"TestOperators_EveryVerbInEveryState", "internal/store TestRetryStepMakesAParkedStepNewAndReopensItsTask", "internal/store TestRetryStepOfABackingOffStepIsDueNow"}},
		{"CompleteStep's results reach dependants verbatim", []string{"TestOperators_CompleteStepGivesItsResultsToDependantsVerbatim"}},
		{"CancelTask acts on pending, in_progress and error, is OK when repeated, and TASK_FINISHED when complete", []string{"TestOperators_CancelTaskInEveryState"}},
		{"BulkRetrySteps needs a filter, is bounded, spreads and pages", []string{"TestOperators_BulkRetryNeedsAFilterIsBoundedAndSpreads", "internal/store TestBulkRetrySteps"}},
		{"PurgeTask takes ended tasks only, and their key", []string{"TestOperators_PurgeTakesEndedTasksOnly"}},
		{"operators' acts are events with a reason; the actor comes from the credential alone", []string{"TestOperators_TheirActsAreEventsWithTheirReason", "server TestTheActorIsNeverTakenFromTheRequest", "internal/rpc TestTheCallerComesFromTheSeam"}},
	},
	"templates": {
		{"the seed's YAML registers unchanged, and runs", []string{"TestTemplate_TheSeedsYAMLRegistersUnchangedAndRuns", "internal/template TestParseSeed", "cmd/tasker TestFromTemplateToResults"}},
		{"every key of a step is read, and every retry setting may be overridden per task", []string{"TestTemplate_EverySettingMayBeOverriddenPerTask", "internal/template TestParseEveryField"}},
		{"versions sort as semver", []string{"TestTemplate_LatestIsTheGreatestAsSemverSorts", "internal/store TestLatestSortsAsSemver"}},
		{"tasks are pinned to the version they were submitted by", []string{"TestTemplate_TasksArePinnedToTheVersionTheyWereSubmittedBy", "server TestTemplatesArePinnedAndVersioned"}},
		{"circles, unknown parents, same names, self edges and no steps are refused with the path or the name", []string{"TestTemplate_BadGraphsAreRefusedWithThePathOrTheName", "internal/task TestCheckGraphRefuses", "internal/task FuzzCheckGraph"}},
		{"a context is held against its schema at submit", []string{"TestTemplate_ContextIsHeldAgainstItsSchemaAtSubmit", "internal/rpc TestSchemasThatAreRefused"}},
		{"without a version: the same body is no new one, another takes the next patch; with one: another body is refused", []string{"internal/store TestRegisterWithoutAVersionTakesTheNextPatchUnlessEqual", "internal/store TestRegisterWithAVersionIsRefusedForAnotherBody", "internal/store TestConcurrentRegistrationsEachGetAVersion"}},
		{"a file without a name is named by its base name, and numbers keep their text", []string{"internal/template TestParseName", "internal/template TestPayloadKeepsSourceText"}},
	},
	"sql surface": {
		{"the seed's questions run verbatim for a read-only role, with the id as the contract prints it", []string{"TestSurface_TheSeedsQuestionsTakeTheIdAsTheContractPrintsIt", "internal/store TestSeedQueriesRunVerbatimForAReader", "test/docs TestTheTwoQuestionsAreOnThePage"}},
		{"the surface says of a step what the contract says", []string{"TestSurface_SaysOfAStepWhatTheContractSays"}},
		{"its columns are the promised ones, each with a comment", []string{"internal/store TestReadinessColumnsAreThePromisedOnes", "internal/store TestEveryColumnOfTheSurfaceIsDocumented", "test/docs TestColumnsOfTheSQLPage"}},
		{"the step_ids filter changes which rows come back, never their values", []string{"internal/store TestStepIDsFilterChangesRowsNeverValues"}},
		{"levels, attempts, health counts and slowest steps can be asked for", []string{"internal/store TestDependencyLevels", "internal/store TestAttemptsSayWhoWhenOutcomeErrorDelayAndWhy", "internal/store TestSystemHealthCountsAndSlowestSteps"}},
		{"every function is one STABLE select with a pinned path, and the reader has nothing else", []string{"internal/store TestSurfaceFunctionsAreOneStableSelectWithAPinnedPath", "internal/store TestReaderHasTheSurfaceAndNoTable"}},
		{"ids are decimal, hold the shard, and prune to one partition", []string{"TestIds_AreDecimalAndAStepsIsItsTasksPlusItsNumber", "internal/store TestALookUpByIDPrunesToOnePartition", "internal/store TestPrunesToOnePartitionByID"}},
		{"no foreign key, no trigger, no index beyond the named", []string{"TestSchema_HasNoForeignKeysNoTriggersAndNoIndexBeyondTheNamed"}},
	},
	"history": {
		{"every event is one entry, numbered per step without a gap", []string{"TestOperators_TheirActsAreEventsWithTheirReason", "internal/store TestHistoryUnfolds"}},
		{"the invariants are decided from the history alone", []string{"internal/history TestViolations", "internal/history TestStoreHolds", "internal/history TestCleanRecordHolds"}},
		{"the journals of workers and clients must agree with it", []string{"internal/history TestJournalsAgree", "internal/history TestJournalsDisagree"}},
		{"it is dropped by age, when no unfinished task began in or before it", []string{"internal/store TestRetentionOfHistoryWaitsForTasksThatBeganInIt", "internal/store TestHistoryOfADayWithoutAPartitionIsKeptAndDropped"}},
		{"a partition of tasks is dropped when every task in it ended long ago; stragglers' neighbours are deleted", []string{"internal/store TestRetentionDropsAPartitionOnlyWhenEveryTaskInItEndedLongAgo", "internal/store TestRetentionDeletesTheRestOfAPartitionThatStragglersHold"}},
		{"worker sessions are kept as long as what names them", []string{"internal/store TestWorkerSessionsAreKeptAsLongAsWhatNamesThem"}},
		{"idempotency keys are kept until 7 days after the end", []string{"internal/store TestIdempotencyKeysAreKeptUntilSevenDaysAfterTheEnd"}},
	},
	"idempotency": {
		{"the same report again is OK and answered as it was first, however the step went on", []string{"TestIdempotentReport_IsAnsweredAsItWasFirstHoweverTheStepWentOn", "server TestIdempotentReport"}},
		{"another outcome under one token is RESULT_CONFLICT; the duration is no part of it", []string{"TestIdempotentReport_OutcomesAreTheSameWhenEverythingButTheDurationIs", "internal/rpc TestTheDigestIsOfTheOutcome"}},
		{"a token twice in one batch is one report", []string{"TestIdempotentReport_OfOneTokenTwiceInABatchIsOne", "internal/store TestRaceOfOneTokenInTwoFlushes", "test/mutants/no_dedupe.patch"}},
		{"a report is answered after its commit", []string{"internal/engine TestAReportIsAnsweredAfterItsCommit", "test/mutants/reply_before_commit.patch"}},
		{"the same key and body are the same task; another body is refused with the task's id", []string{"server TestIdempotentSubmit", "TestIdempotentSubmit_AKeyHeldByManyAtOnceMakesOneTask", "internal/rpc TestTheSubmitDigestIsOfTheBody"}},
		{"a key twice in one batch: one task, or none when the bodies differ", []string{"TestIdempotentSubmit_OneKeyWithTwoBodiesInOneBatchIsRefused", "server TestIdempotentSubmit"}},
		{"a repeated submit is answered whatever the template has become", []string{"TestIdempotentSubmit_IsAnsweredBeforeItIsHeldAgainstANewerTemplate"}},
		{"nobody gets another caller's error", []string{"TestBatch_NobodyGetsAnotherCallersError", "server TestBatchEntriesAreJudgedAlone"}},
	},
	"streams": {
		{"a stream begins with what holds for its session", []string{"TestStream_BeginsWithWhatHoldsForTheSession"}},
		{"a worker that reconnects learns which leases it lost", []string{"TestStream_TellsAReconnectingWorkerWhichLeasesItLost"}},
		{"the newest stream of an instance gets the frames, the older ends with SESSION_TAKEN_OVER", []string{"TestStream_OlderOneOfASessionEndsAsTakenOverAndItsLeasesStayValid", "TestStream_OlderOneEndsAsTakenOverOnAnotherServerToo", "internal/engine TestASessionMovesToTheServerThatItsNewestStreamIsOn", "internal/engine TestAStreamThatOpensWhileTheOldOneEndsIsServed"}},
		{"another live instance of a worker_id is refused", []string{"internal/engine TestAnotherLiveInstanceOfAWorkerIsRefused", "internal/store TestRaceOfTwoInstancesOfOneWorker", "test/mutants/twins_let_in.patch", "internal/store TestASessionIsAliveAsLongAsItsServer", "internal/engine TestAServerSpeaksForItsSessions", "test/mutants/server_not_asked.patch", "internal/engine TestALostCloseIsMadeGood", "test/mutants/lost_close_forgotten.patch", "TestPoll_ObeysItsOwnBoundsAndTellsWhatAStreamTells"}},
		{"max_in_flight is never exceeded, over any number of servers", []string{"server TestCapacityIsNeverExceeded", "internal/engine TestCapacityHoldsOverReplicasAndIsFreedByReportsThatLandElsewhere", "internal/engine TestCapacityIsNotFreedByAReportThatIsNotCommitted", "internal/engine TestCapacityHoldsWhenAnotherSessionOfTheClaimHasMoved", "test/mutants/capacity_ignored.patch", "test/mutants/capacity_freed_early.patch", "test/mutants/session_not_fenced.patch"}},
		{"a handler's own limit holds within it", []string{"TestStream_AHandlersOwnLimitHoldsWithinTheSessions"}},
		{"idle frames come from the dispatcher, and notices say why nothing is sent", []string{"TestStream_IdleFramesComeFromTheDispatcherAndSayWhyNothingIsSent"}},
		{"a poll shares queue, session and capacity, and tells what a stream tells", []string{"TestPoll_ObeysItsOwnBoundsAndTellsWhatAStreamTells", "server TestPollSharesTheQueue", "internal/engine TestAPollReturnsWithTheFirstSteps"}},
		{"nothing is granted after a drain, which returns when no lease is left or names those that are", []string{"TestDrain_NothingIsGrantedAfterItAndWhatIsLeftIsNamed", "internal/engine TestDrainGrantsNothingMoreAndWaitsForTheLast"}},
		{"labels and builds of workers are shown, never matched", []string{"TestWorkers_ListShowsWhatTheySaidAndHold"}},
		{"a namespace is made by the first submit or registration and empty before", []string{"TestNamespace_UnknownOnesAreEmptyInReadsAndMadeByNoRead", "TestStream_ANamespaceThatNobodyUsedYetIsServedOnceSomebodyDoes"}},
		{"a stopping server tells streams to move, and is gone in 20 seconds", []string{"server TestAStopMovesTheWorkersFirst", "server TestAStopIsBounded", "internal/engine TestDrainingServersTellStreamsToMoveAndRefuseNewOnes", "internal/rpc TestAnOldStreamIsAskedToMove"}},
		{"dead LISTEN: slower, never stuck", []string{"internal/engine TestServersThatCannotListenAreSlowerAndNotStuck", "internal/engine TestADeadListenConnectionIsReplaced"}},
		{"an idle server asks the database less than twice a second", []string{"TestIdle_StreamsCostTheDatabaseNothing"}},
		{"reach on a step without a circuit acts as the step's alone, and the answer says so", []string{"TestReach_OfAStepAloneIsSaid"}},
		{"steps carry the trace of their submit", []string{"TestStream_StepsCarryTheTraceOfTheirSubmit"}},
		{"a worker in any language follows from the comments alone", []string{"test/docs TestWorkerOfThePage", "test/docs TestPython", "internal/worker TestOldStreamMayEndFirstWhenAnotherTakesOver"}},
	},
	"queue": {
		{"priorities are served 8 : 4 : 2 : 1", []string{"TestQueue_FourPrioritiesAreServedEightToFourToTwoToOne"}},
		{"handlers take turns", []string{"TestQueue_HandlersTakeTurns"}},
		{"within a lane the time decides at which a step became runnable, and a returned one keeps its place", []string{"TestQueue_GoesByTheTimeStepsBecameRunnableAndAReturnedOneKeepsItsPlace"}},
		{"a row that appears behind the cursor is found", []string{"TestQueue_ARowThatAppearsBehindTheCursorIsFound", "test/mutants/no_cursor_sweep.patch"}},
		{"a wake that is lost with its server is made good within a second", []string{"internal/engine TestALostWakeIsMadeGoodWithinASecond", "test/mutants/no_probe.patch"}},
		{"a busy server cleans the live tables", []string{"internal/engine TestABusyServerCleansTheLiveTables"}},
		{"retries of other servers are dispatched when they are due", []string{"internal/engine TestDueRetriesOfOtherServersAreDispatchedWhenTheyAreDue"}},
	},
	"watch": {
		{"it begins with a snapshot and ends after the frame of a complete or cancelled task", []string{"TestWatch_EndsAfterTheFrameOfACompleteOrCancelledTask", "server TestWatchShowsEveryState"}},
		{"at error it ends only when told to", []string{"TestWatch_StaysWithATaskInErrorUnlessItIsToldToStop"}},
		{"it resumes after a revision without a gap, a snapshot that broke off included", []string{"TestWatch_ResumesAfterARevisionWithoutAGap", "TestWatch_ASnapshotInSeveralFramesIsResumedFromBeforeIt", "internal/rpc TestASnapshotGoesInFramesThatFit"}},
		{"a slow reader is skipped forward", []string{"TestWatch_ASlowReaderIsSkippedForward"}},
		{"it sees what other servers do", []string{"TestWatch_SeesWhatAnotherServerDoes"}},
		{"idle ones carry heartbeats", []string{"TestWatch_IdleOnesCarryHeartbeats"}},
		{"a submit may wait for the end", []string{"server TestASubmitMayWaitForTheEnd"}},
	},
	"payloads": {
		{"JSON objects are kept verbatim or refused as VALIDATION, never INTERNAL", []string{"server TestPayloadsAreVerbatimOrRefused", "internal/task TestCheckObjectTakes", "internal/task TestCheckObjectRefuses", "internal/task FuzzCheckObject", "internal/rpc TestMalformedRequests", "test/malformed TestMalformedRequestsAboutLivingThings"}},
		{"parents' results ride in the frame up to 1 MiB, the rest is named and read in pages", []string{"server TestResultsOfManyParentsComeInTheFrame", "server TestResultsThatDoNotFitAreReadInPages", "internal/rpc TestAFrameNamesWhatDoesNotFit", "internal/engine TestGetDependencyResultsPagesWithinItsBound"}},
		{"an unset outcome means nothing", []string{"server TestAnUnsetOutcomeMeansNothing"}},
		{"leaf results come with the task, up to a bound", []string{"internal/engine TestGetTaskHandsOutLeafResultsUpToABound"}},
		{"no payload, token or password is logged", []string{"server TestNoPayloadTokenOrPasswordIsLogged"}},
	},
	"errors": {
		{"every reason has one code, an example and its details", []string{"internal/rpc TestEveryReasonHasTheCodeOfItsComment", "internal/rpc TestEveryReasonIsInTheContract", "internal/rpc TestARefusalCarriesItsDetails", "internal/contract TestEveryErrorReasonShowsAnExample"}},
		{"field errors name every field", []string{"server TestErrorsSayWhichFieldsAreWrong", "internal/contract TestRulesHoldAtTheLimitAndRefuseBeyondIt"}},
		{"a defect shows an id and nothing else", []string{"internal/rpc TestADefectShowsNothingButAnID", "TestBatch_NobodyGetsAnotherCallersError"}},
		{"trouble of the database is UNAVAILABLE, and readiness follows it", []string{"internal/rpc TestTroubleOfTheDatabaseIsUnavailable", "server TestReadinessFollowsTheDatabase", "server TestAServerWaitsForItsSchema"}},
		{"a passed deadline is told", []string{"internal/rpc TestAPassedDeadlineIsTold"}},
		{"over-size is INVALID_ARGUMENT, never RESOURCE_EXHAUSTED", []string{"TestLimits_PayloadsOfOneMebibyte", "server TestSizesAreRefusedAsTooLarge"}},
	},
	"pages": {
		{"every list goes through all once, and its tokens are bound to the filter", []string{"TestPages_EveryListGoesThroughAllOnceAndBindsItsTokens", "internal/engine TestPageTokenIsBoundToItsFilter", "internal/engine FuzzPageToken"}},
		{"tasks are filtered by state, template, labels and time, the newest first", []string{"TestPages_TasksAreFilteredByStateTemplateLabelsAndTime", "internal/engine TestListTasksPagesByItsFilterOnly"}},
		{"pages fit their answers", []string{"internal/rpc TestPagesFitTheirAnswers"}},
	},
	"limits": {
		{"10,000 steps", []string{"TestLimits_TenThousandStepsATask", "internal/task TestCheckGraphTakesTheLimits"}},
		{"50,000 dependencies", []string{"TestLimits_FiftyThousandDependenciesATask"}},
		{"fan-in of all other steps", []string{"TestLimits_FanInOfAllOtherSteps"}},
		{"payloads of 1 MiB, checkpoints of 256 KiB, context and handler_config together", []string{"TestLimits_PayloadsOfOneMebibyte", "internal/task TestCheckObjectLimit"}},
		{"names of 255 bytes", []string{"TestLimits_NamesOf255BytesAreKeptWhole"}},
		{"64 labels", []string{"TestLimits_SixtyFourLabels"}},
		{"batches of 1,000 and of 3.5 MiB", []string{"TestLimits_BatchesOfAThousand", "TestLimits_BatchesOfThreeAndAHalfMebibytes"}},
		{"pages of 1,000, 50 by default", []string{"TestLimits_PagesOfAThousandFiftyByDefault"}},
		{"10,000 held tokens", []string{"TestLimits_HeldTokensOfAReconnect"}},
		{"every rule of every field", []string{"internal/contract TestRulesHoldAtTheLimitAndRefuseBeyondIt", "internal/contract TestEveryRuleHasItsLineInTheTable", "internal/contract TestRulesThatTouchSeveralFields"}},
		{"8 MiB and 32 KiB of headers for the transport, 256 streams a connection", []string{"TestLimits_TransportTakesEightMebibytesAndHeadersOf32", "server TestLimitsOfAConnection"}},
		{"streams and watches of a namespace", []string{"TestStream_NumberOfThemIsBounded", "TestWatch_NumberOfThemIsBounded"}},
		{"calls that wait", []string{"TestLimits_CallsThatWaitAreBounded"}},
	},
	"proof": {
		{"the floor that figures are ratios to is the project's own", []string{"bench/floor TestRun", "bench/floor TestRunRefusesServerWithoutFsync"}},
		{"the server's figures are measured beside it, and loss or doubling is told", []string{"internal/bench TestRun", "internal/bench TestRunTellsLossAndDoubling"}},
		{"servers, workers and Postgres backends are killed as processes, and the checker finds nothing", []string{"test/chaos TestChaos"}},
		{"the demo's verdict is the checker's, and notices each defect planted", []string{"cmd/tasker TestDemoKeepsItsPromises", "cmd/tasker TestDemoNoticesEachDefect"}},
		{"planted mutants are caught by the ordinary suite", []string{"test/mutants/run"}},
		{"the least and the newest supported PostgreSQL are tested, and counts below their numbers fail", []string{".ci/run", ".ci/postgres18.go"}},
		{"metrics are served", []string{"server TestMetrics"}},
	},
}

// Every proof exists, and every test of this package proves something.
func TestRows_EveryProofExistsAndEveryTestProvesSomething(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	here := testsIn(t, ".")
	cited := map[string]bool{"TestMain": true, t.Name(): true}
	packages := map[string]map[string]bool{}
	for topic, all := range rows {
		for _, r := range all {
			if r.promise == "" || len(r.proofs) == 0 {
				t.Errorf("%s: %q has no proof", topic, r.promise)
			}
			for _, proof := range r.proofs {
				dir, test, elsewhere := strings.Cut(proof, " ")
				switch {
				case elsewhere:
					if packages[dir] == nil {
						packages[dir] = testsIn(t, filepath.Join(root, dir))
					}
					if !packages[dir][test] {
						t.Errorf("%s: %s has no %s, which is to prove that %s", topic, dir, test, r.promise)
					}
				case strings.HasPrefix(proof, "Test"):
					cited[proof] = true
					if !here[proof] {
						t.Errorf("%s: there is no %s, which is to prove that %s", topic, proof, r.promise)
					}
				default:
					if _, err := os.Stat(filepath.Join(root, proof)); err != nil {
						t.Errorf("%s: %v, which is to prove that %s", topic, err, r.promise)
					}
				}
			}
		}
	}
	for test := range here {
		if !cited[test] {
			t.Errorf("%s proves no promise of the table", test)
		}
	}
}

// testsIn are the tests and fuzz targets of a package, by the sources.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				tests[f.Name.Name] = true
			}
		}
	}
	return tests
}
